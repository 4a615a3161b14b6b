"""The fleet of generation workers: claims a second, the cost of a million prompts, and kills.

python -m benchmarks.fleet claims [--workers 100] [--units 5000] [--directory DIR]
python -m benchmarks.fleet prompts [--count 1000000]
python -m benchmarks.fleet kills --checkpoint DIR [--workers 6] [--count 500] [--kills 30]

`claims` starts processes that do nothing but claim units and commit them, in a directory that may be on the file system
in question. `prompts` opens a file of prompts as a worker does. `kills` has workers generate, kills one of them at
random again and again and starts it anew, and compares every byte with what one worker makes alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nar_scale.fleet import Holder, Layout, SharedDirectory, Units, Worker, read_status

PROMPT_LETTERS = 90


class InstantMaker:
    """Makes results that take no time."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def make(self, numbers: list[int]) -> Iterator[dict[int, bytes]]:
        """Make all at once."""
        self.numbers += numbers
        yield {number: json.dumps({"number": number}).encode() for number in numbers}

    def before_commit(self, unit: int, results: list[bytes]) -> None:
        """Do nothing."""


def work(directory: str, layout: Layout, begin, made) -> None:  # type: ignore[no-untyped-def]
    maker = InstantMaker()
    worker = Worker(Units(SharedDirectory(Path(directory)), layout, Holder.of_this_process()), maker)
    begin.wait()
    worker.run()
    made.put(maker.numbers)


def claims(options: argparse.Namespace) -> None:
    context = multiprocessing.get_context("fork")
    layout = Layout(options.units, 1)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        begin, made = context.Event(), context.Queue()
        workers = [context.Process(target=work, args=(directory, layout, begin, made)) for _ in range(options.workers)]
        for worker in workers:
            worker.start()
        start = time.perf_counter()
        begin.set()
        numbers = [number for _ in workers for number in made.get()]
        seconds = time.perf_counter() - start
        for worker in workers:
            worker.join()
        left = [name for name in os.listdir(directory) if layout.unit_of(name) is None]
    assert sorted(set(numbers)) == list(range(options.units))
    twice, rate = len(numbers) - options.units, options.units / seconds
    print(f"{options.workers} workers, {options.units} units: {seconds:.1f} s, {rate:.0f} claims and commits a second")
    print(f"{twice} units made twice, {len(left)} files left behind")


def prompts(options: argparse.Namespace) -> None:
    from nar_scale.generation import open_requests

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "prompts.jsonl"
        with open(path, "w") as file:
            for number in range(options.count):
                file.write(json.dumps({"prompt": f"{number:0{PROMPT_LETTERS}d}", "id": number}) + "\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        source = open_requests(path)
        seconds = time.perf_counter() - start
        requests = source.read(options.count // 2, options.count // 2 + 64)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        size = path.stat().st_size
    assert [request.number for request in requests] == list(range(options.count // 2, options.count // 2 + 64))
    print(f"{source.count} prompts, {size / 1e6:.0f} MB: {seconds:.2f} s, {memory / 1024:.0f} MiB at the peak")


def kills(options: argparse.Namespace) -> None:
    draw = random.Random(0)
    directory = Path(tempfile.mkdtemp())
    path, output = directory / "prompts.jsonl", directory / "together"
    path.write_text("".join(json.dumps({"prompt": "x" * draw.randint(0, 12)}) + "\n" for _ in range(options.count)))
    script = Path(__file__).parents[1] / "launcher" / "generate.py"
    common = [sys.executable, str(script), "--checkpoint", options.checkpoint, "--prompts", str(path)]
    common += ["--part-size", "16", "--batch-size", "2", "--seed", "7"]

    def start() -> subprocess.Popen[bytes]:
        command = [*common, "--output", str(output), "--lease", "5"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    workers = [start() for _ in range(options.workers)]
    killed = 0
    while any(worker.poll() is None for worker in workers):
        time.sleep(draw.uniform(0, options.pause))
        which = draw.randrange(len(workers))
        if killed < options.kills and workers[which].poll() is None:
            workers[which].kill()
            workers[which].wait()
            workers[which] = start()
            killed += 1
    statuses = [worker.returncode for worker in workers]
    subprocess.run([*common, "--output", str(directory / "alone")], check=True, stdout=subprocess.DEVNULL)
    names = sorted(each.name for each in (directory / "alone").iterdir())
    same = names == sorted(each.name for each in output.iterdir()) and all(
        (directory / "alone" / name).read_bytes() == (output / name).read_bytes() for name in names
    )
    status = read_status(output)
    shutil.rmtree(directory)
    print(f"{options.workers} workers, {options.count} prompts, {killed} kills, exit statuses {statuses}: {status}")
    print(f"byte for byte what one worker makes: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["claims", "prompts", "kills"])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--units", type=int, default=5000)
    parser.add_argument("--count", type=int)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between kills, at most")
    parser.add_argument("--checkpoint")
    parser.add_argument("--directory")
    options = parser.parse_args()
    defaults = {"claims": (100, 0), "prompts": (0, 1_000_000), "kills": (6, 500)}[options.what]
    options.workers, options.count = options.workers or defaults[0], options.count or defaults[1]
    {"claims": claims, "prompts": prompts, "kills": kills}[options.what](options)


if __name__ == "__main__":
    main()
