"""Generation workers on a private SLURM cluster: killed again and again, and one node powered off.

python -m benchmarks.fleet_on_slurm [--workers 6] [--count 500] [--kills 30]

Needs what tests/slurm needs. An untrained model of 0.4 M parameters continues the prompts; each killed worker is
replaced by a new job. At the end every byte is compared with what one worker makes alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from nar_scale.fleet import Holder, read_status
from tests.generation.helpers import export
from tests.slurm.cluster import ENDED, Cluster

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "slurm" / "generate.sbatch"
MODEL = {"dim": 64, "depth": 4, "heads": 2, "max_seq_len": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--kills", type=int, default=30)
    options = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "launcher").symlink_to(REPOSITORY / "launcher")
        export(directory / "model", "autoregressive", model=MODEL)
        lines = [json.dumps({"prompt": "x" * draw.randint(0, 12)}) + "\n" for _ in range(options.count)]
        (directory / "prompts.jsonl").write_text("".join(lines))
        arguments = ["--checkpoint", "model", "--prompts", "prompts.jsonl", "--part-size", "10", "--batch-size", "2"]
        (directory / "cluster").mkdir()
        cluster = Cluster(directory / "cluster", nodes=3)
        cluster.start()
        start = time.monotonic()
        try:
            killed, ended = run(cluster, directory, arguments, options, draw)
        finally:
            cluster.stop()
        seconds = time.monotonic() - start
        script = REPOSITORY / "launcher" / "generate.py"
        alone = [sys.executable, str(script), *arguments, "--output", "alone"]
        subprocess.run(alone, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        names = sorted(path.name for path in (directory / "alone").iterdir())
        same = names == sorted(path.name for path in (directory / "together").iterdir()) and all(
            (directory / "alone" / each).read_bytes() == (directory / "together" / each).read_bytes() for each in names
        )
        print(f"{options.workers} workers on 3 nodes, {killed} kills, 1 node off, {seconds:.0f} s; jobs: {ended}")
        print(read_status(directory / "together"))
        print(f"byte for byte what one worker makes: {same}")


def run(
    cluster: Cluster, directory: Path, arguments: list[str], options: argparse.Namespace, draw: random.Random
) -> tuple[int, str]:
    """Work until all is done; how often a worker was killed, and how the jobs ended."""
    output = directory / "together"
    env = {"NAR_SCALE_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def submit() -> str:
        more = ("--output", "together", "--lease", "5")
        return cluster.submit(SCRIPT, *arguments, *more, directory=directory, env=env)

    jobs = [submit() for _ in range(options.workers)]
    killed, off = 0, False
    while not (output / "generation.json").exists():
        time.sleep(0.5)
    while not read_status(output).complete:
        time.sleep(draw.uniform(0.5, 2))
        if not off and killed >= options.kills // 2 and workers_on(output):
            off = True
            host = draw.choice(workers_on(output)).host
            cluster.run("kill", "-9", (directory / "cluster" / f"{host}.pid").read_text().strip())
        busy = workers_on(output)
        job = draw.choice(busy).job if busy else None
        if killed < options.kills and job is not None and cluster.state(job) == "RUNNING":
            cluster.run("scancel", "--full", "--signal=KILL", job)
            jobs.append(submit())
            killed += 1
    for job in jobs:
        while cluster.state(job) not in ENDED:
            time.sleep(1)
    ended = Counter(cluster.state(job) for job in jobs)
    return killed, ", ".join(f"{count} {state}" for state, count in sorted(ended.items()))


def workers_on(output: Path) -> list[Holder]:
    """Those that hold units and have given a sign lately."""
    return [each.holder for each in read_status(output).running if each.holder and not each.gone]


if __name__ == "__main__":
    main()
