"""Kill a run again and again, and compare it with one that nobody disturbs.

Ranks are killed with SIGKILL, one or all of them, at random instants and while a checkpoint is being written; now and
then a file of a checkpoint is truncated or deleted. In the end every step's loss must be that of the undisturbed run,
to the last bit (fp32 on CPUs); after each kill the `latest` pointer must name a checkpoint that is whole.

python benchmarks/chaos.py [--kills 50] [--ranks 2] [--steps 600] [--seed 0] [--asynchronous]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nar_scale.checkpoint import CheckpointStore, TrainingState, verify_integrity
from nar_scale.data import prepare
from nar_scale.logging_setup import silence_libraries
from nar_scale.training import launch

SOURCE = Path(__file__).parents[1] / "nar_scale"
SECONDS_TO_END = 5.0
GLOBAL_BATCH_SIZE = 8


@dataclass
class Report:
    """What was done to a run, and how it fared."""

    kills: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    passed_over: int = 0
    bad_pointers: int = 0
    seconds: float = 0.0
    finished: bool = False
    differing_steps: int = 0
    final_losses: tuple[float, float] = (0.0, 0.0)
    samples: int = 0
    damaged: set[Path] = field(default_factory=set)

    def table(self) -> str:
        """The report as a table."""
        rows = [
            *((f"killed: {kind}", count) for kind, count in sorted(self.kills.items())),
            ("killed in all", self.kills.total()),
            *((f"file of a checkpoint {kind}", count) for kind, count in sorted(self.damages.items())),
            ("starts", self.attempts),
            ("damaged checkpoints reported and passed over", self.passed_over),
            ("`latest` named an unloadable checkpoint", self.bad_pointers),
            ("finished", "yes" if self.finished else "no"),
            ("samples consumed", f"{self.samples:,}"),
            ("steps whose loss differs from the undisturbed run's", self.differing_steps),
            ("final loss, undisturbed and disturbed", "{:.6f} {:.6f}".format(*self.final_losses)),
            ("seconds", f"{self.seconds:.0f}"),
        ]
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])

    @property
    def unharmed(self) -> bool:
        """Whether nothing was lost."""
        return self.finished and not self.bad_pointers and not self.differing_steps


class Job:
    """The ranks of one start, forked from this process: importing would take longer than training."""

    def __init__(self, config: Path, run: Path, ranks: int, log: Path):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.pids = [self._fork(config, run, rank, ranks, port, log) for rank in range(ranks)]
        self.living = set(self.pids)
        self.statuses: dict[int, int] = {}

    @staticmethod
    def _fork(config: Path, run: Path, rank: int, ranks: int, port: int, log: Path) -> int:
        pid = os.fork()
        if pid:
            return pid
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = launch(str(config), [f"training.run_directory={run}"])
        sys.stdout.flush()
        os._exit(status)

    def running(self) -> bool:
        """Whether any rank lives."""
        for pid in list(self.living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.living.remove(pid)
                self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return bool(self.living)

    def kill(self, pids: list[int], number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        for pid in pids:
            if pid in self.living:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self) -> None:
        """What a launcher does when a rank has died: ask the others to end, then end them."""
        deadline = time.monotonic() + SECONDS_TO_END
        self.kill(self.pids, signal.SIGTERM)
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.kill(self.pids)
        while self.running():
            time.sleep(0.01)


def disturb(config: Path, run: Path, ranks: int, kills: int, seed: int, report: Report, log: Path) -> None:
    """Run to the end, with as many kills on the way."""
    chance = random.Random(seed)
    store = CheckpointStore(run / "checkpoints")
    while not report.finished:
        job = Job(config, run, ranks, log)
        report.attempts += 1
        killed = False
        if report.kills.total() < kills:
            when = chance.choice(("while starting", "between checkpoints", "while a checkpoint is written"))
            whom = chance.choice(("one rank", "all ranks"))
            killed = _wait(job, run, store, when, chance)
            if killed:
                victims = job.pids if whom == "all ranks" else [chance.choice(job.pids)]
                job.kill(victims)
                report.kills[f"{whom}, {when}"] += 1
                job.end()
        while job.running():
            time.sleep(0.05)
            if len(job.living) < ranks and set(job.statuses.values()) != {0}:
                job.end()
        report.finished = set(job.statuses.values()) == {0}
        report.damaged = {path for path in report.damaged if path.exists()}  # the rest has been set aside
        _check_pointer(store, report)
        if not report.finished and not killed:
            print(f"failed without being killed: {log.read_text()[-2000:]}", file=sys.stderr)
            return
        if not report.finished and chance.random() < 0.25:
            _damage(store, chance, report)


def _wait(job: Job, run: Path, store: CheckpointStore, when: str, chance: random.Random) -> bool:
    """Wait for the instant to kill; false if the run has ended before."""
    until = time.monotonic() + chance.uniform(0, 4)
    step = last_step(run) + chance.randint(1, 5)
    written = chance.randint(1, 2)
    seen: set[Path] = set()
    while job.running():
        if when == "while starting" and time.monotonic() > until:
            return True
        if when == "while a checkpoint is written":
            writing = set(store.directory.glob(".writing-*")) - seen
            if writing and len(seen) + 1 >= written:
                time.sleep(chance.uniform(0, 0.05))
                return job.running()
            seen |= writing
        if when == "between checkpoints" and last_step(run) >= step:
            return True
        time.sleep(0.002)
    return False


def _check_pointer(store: CheckpointStore, report: Report) -> None:
    if store.pointer.exists():
        newest = store.directory / store.pointer.read_text().strip()
        problem = verify_integrity(newest)
        if problem is not None and newest not in report.damaged:
            report.bad_pointers += 1
            print(f"unloadable: {problem}", file=sys.stderr)


def _damage(store: CheckpointStore, chance: random.Random, report: Report) -> None:
    """Damage a file of the newest or another checkpoint, if a whole one is left."""
    whole = [step for step in store.steps() if store.path(step) not in report.damaged]
    if len(whole) < 2:
        return
    step = chance.choice(whole)
    file = chance.choice([path for path in sorted(store.path(step).rglob("*")) if path.is_file()])
    report.damaged.add(store.path(step))
    if chance.random() < 0.5:
        file.unlink()
        report.damages["deleted"] += 1
    else:
        os.truncate(file, file.stat().st_size // 2)
        report.damages["truncated"] += 1


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of the metrics log that hold a loss, leaving out one that a kill has cut off."""
    lines = []
    for line in (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if "loss" in line]


def last_step(run: Path) -> int:
    """The last step that was reported."""
    return max((int(line["step"]) for line in metrics(run)), default=0)


def compare(run: Path, undisturbed: Path, report: Report) -> None:
    """Fill in how the disturbed run differs from the undisturbed one."""
    expected = [(line["step"], line["loss"]) for line in metrics(undisturbed)]
    found = [(line["step"], line["loss"]) for line in metrics(run)]
    report.differing_steps = len(set(expected) ^ set(found)) + abs(len(expected) - len(found))
    report.final_losses = (expected[-1][1], found[-1][1])
    store = CheckpointStore(run / "checkpoints")
    state = TrainingState.load(store.path(store.steps()[-1]))
    report.samples = state.samples
    report.finished = report.finished and state.samples == state.step * GLOBAL_BATCH_SIZE


def chaos(directory: Path, kills: int, ranks: int, steps: int, seed: int, asynchronous: bool) -> Report:
    """Both runs, and the report."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare([SOURCE], directory / "data", include="*.py", seq_len=32, validation=0.0, workers=1, progress=False)
    config = directory / "chaos.yaml"
    settings = {
        "model": {"dim": 32, "depth": 2, "heads": 2, "max_seq_len": 32, "dropout": 0.1},
        "objective": {"kind": "non_autoregressive"},
        "data": {"directory": str(directory / "data"), "loader_workers": 1},
        "optimizer": {"learning_rate": 3e-3},
        "training": {
            "steps": steps,
            "global_batch_size": GLOBAL_BATCH_SIZE,
            "micro_batch_size": 2,
            "precision": "fp32",
            "ema_decay": 0.99,
        },
        "checkpoint": {"every": 5, "keep_last": 3, "asynchronous": asynchronous},
        "logging": {"every": 1},
    }
    config.write_text(yaml.safe_dump(settings))
    report, started = Report(), time.monotonic()
    undisturbed = Job(config, directory / "undisturbed", ranks, directory / "undisturbed.log")
    while undisturbed.running():
        time.sleep(0.05)
    assert set(undisturbed.statuses.values()) == {0}, (directory / "undisturbed.log").read_text()
    log = directory / "disturbed.log"
    disturb(config, directory / "disturbed", ranks, kills, seed, report, log)
    report.passed_over = log.read_text().count("passed over")
    compare(directory / "disturbed", directory / "undisturbed", report)
    report.seconds = time.monotonic() - started
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asynchronous", action="store_true", help="write checkpoints beside the run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    options = parser.parse_args()
    silence_libraries()
    with tempfile.TemporaryDirectory() as directory:
        report = chaos(Path(directory), options.kills, options.ranks, options.steps, options.seed, options.asynchronous)
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps({**vars(report), "damaged": len(report.damaged)}))
    return 0 if report.unharmed else 1


if __name__ == "__main__":
    sys.exit(main())
