"""Train with faults put in from outside: case after case, each in forks of a process that has imported everything.

python -m tests.distributed.fault_cases FILE, a JSON list of [config, overrides, {point: [kind, rank]}, resume]

Prints for each case a line of JSON: [exit statuses of the ranks, output]. Rank -1 are all. Points come from callbacks
and from what is logged for debugging: `listing`, `start`, `step N` (as attempted, whatever a roll back does to the
count), `evaluation N`, `save N` and `partitions N` (in the N-th batch or checkpoint), `after save N` and `sampling 1`.
"""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as launcher/train.py does

import torch

import nar_scale.training.run
from nar_scale.checkpoint import CheckpointStore
from nar_scale.fleet.holder import Holder
from nar_scale.logging_setup import silence_libraries
from nar_scale.training import launch
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.engine.zero_engine import ZeroEngine
from tests.preload import import_everything

from .jobs import free_port

RANKS = 2
LONGEST_CASE_SECONDS = 100
SKIPPED = ("nan loss", "inf loss", "nan gradient")


class Faults:
    """What goes wrong on this rank, and where."""

    def __init__(self, points: dict[str, tuple[str, int]], rank: int, run_directory: Path):
        self.points, self.rank, self.run_directory = points, rank, run_directory

    def at(self, point: str) -> str | None:
        kind, rank = self.points.get(point, (None, -1))
        return kind if rank in (-1, self.rank) else None

    def strike(self, point: str) -> None:
        match self.at(point):
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # Python's handlers run between instructions
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(1e6)
            case "slow":
                time.sleep(0.3)
            case "memory":
                torch.empty(2**50)
            case "no memory":
                raise MemoryError
            case "surprise":
                raise RuntimeError("a surprise")
            case "round robin":
                lay_out_in_turn()
            case "stale":  # what is there has not come to this node yet
                CheckpointStore.steps = lambda store: []  # type: ignore[method-assign]
            case "taken over":  # by another attempt, which has removed what this one is writing
                holder = replace(Holder.of_this_process(), pid=4711, token="another attempt")
                (self.run_directory / "lease-9.json").write_text(json.dumps(asdict(holder)))
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            case "full disk":
                fill(self.run_directory / "filler")
            case "read-only":
                checkpoints = str(self.run_directory / "checkpoints")
                subprocess.run(["mount", "--bind", checkpoints, checkpoints], check=True)
                subprocess.run(["mount", "-o", "remount,bind,ro", checkpoints], check=True)


def lay_out_in_turn() -> None:
    """Let DeepSpeed have a setting that is refused, as if it were one of those nobody knows."""
    resolve = nar_scale.training.run.resolve_deepspeed_config

    def resolve_otherwise(*arguments: Any) -> dict[str, Any]:
        resolved = resolve(*arguments)
        resolved["zero_optimization"]["round_robin_gradients"] = True
        return resolved

    nar_scale.training.run.resolve_deepspeed_config = resolve_otherwise


def fill(path: Path) -> None:
    assert path.parent.is_mount()
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


class FaultInjector(Callback):
    """Lets forward passes and optimizer states go wrong; notes the skipped steps that have changed something."""

    def __init__(self, faults: Faults):
        self.faults = faults
        self.steps_attempted = self.batches_evaluated = 0
        self.changed: list[int] = []
        self.before: dict[str, torch.Tensor] = {}

    def on_run_start(self, run: RunView) -> None:
        from deepspeed.comm import comm

        assert comm.cdb.shm_comm_op is None  # nothing is compiled
        print_timeouts(self.faults.rank)
        self.faults.strike("start")
        module = run.engine.module
        module.register_forward_pre_hook(lambda *_: self.before_forward(run))
        module.register_forward_hook(lambda module, arguments, terms: self.changed_terms(module, terms))

    def before_forward(self, run: RunView) -> None:
        if not run.engine.module.training:
            self.batches_evaluated += 1
            self.faults.strike(f"evaluation {self.batches_evaluated}")
            return
        self.steps_attempted += 1  # one micro-batch a step
        kind, _ = self.faults.points.get(self.point, ("", -1))
        self.before = snapshot(run.engine) if kind in SKIPPED else {}
        if self.faults.at(self.point) == "nan moments":
            for partition in run.engine.partitions():
                partition.tensors["exp_avg"].fill_(float("nan"))
        self.faults.strike(self.point)

    @property
    def point(self) -> str:
        return f"step {self.steps_attempted}"

    def changed_terms(self, module: torch.nn.Module, terms: Any) -> Any:
        if not module.training:
            return terms
        match self.faults.at(self.point):
            case "nan loss":
                return terms._replace(sums=terms.sums * float("nan"))
            case "inf loss":  # with a gradient that is finite
                return terms._replace(sums=terms.sums + float("inf"))
            case "nan gradient":
                terms.sums.register_hook(lambda gradient: gradient * float("nan"))
            case "spike":
                return terms._replace(sums=terms.sums * 100)
        return terms

    def on_step_end(self, run: RunView) -> None:
        if self.before and not equal(self.before, snapshot(run.engine)):
            self.changed.append(self.steps_attempted)
        self.before = {}


def snapshot(engine: ZeroEngine) -> dict[str, torch.Tensor]:
    """Weights in all precisions, moments and step counters that this rank holds."""
    found = {name: getattr(p, "ds_tensor", p) for name, p in engine.module.named_parameters()}
    for partition in engine.partitions():
        found |= {f"{partition.name}, {kind}": value for kind, value in partition.tensors.items()}
        found |= {f"{partition.name}, {kind}": torch.tensor(value) for kind, value in partition.scalars.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def equal(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class FaultyLogging(logging.Filter):
    """Lets faults strike where checkpoints and samples are logged; what is logged for them alone is not shown."""

    LOGGERS = ("nar_scale.training.checkpointing.io", "nar_scale.training.callbacks.sample_writer")
    BEFORE = {  # noqa: RUF012
        "writing the checkpoint of step %d": "save",
        "writing %s": "partitions",
        "generating samples at step %d": "sampling",
    }
    AFTER_SAVE = ("checkpoint of step %d written", "checkpoint of step %d not written: %s")

    def __init__(self, faults: Faults):
        super().__init__()
        self.faults = faults
        self.numbers = dict.fromkeys(self.BEFORE.values(), 0)

    def install(self) -> None:
        for name in self.LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.DEBUG)
            logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if point := self.BEFORE.get(record.msg):
            self.numbers[point] += 1
            if point == "save":
                print_timeouts(self.faults.rank)
            self.faults.strike(f"{point} {self.numbers[point]}")
        elif record.msg in self.AFTER_SAVE:
            self.faults.strike(f"after save {self.numbers['save']}")
        return record.levelno > logging.DEBUG


def print_timeouts(rank: int) -> None:
    groups = torch.distributed.distributed_c10d._world.pg_map
    timeouts = {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups}
    # in one piece, since a thread may print as well
    sys.stdout.write(f"rank {rank} waits in {len(groups)} groups for {sorted(timeouts)} s\n")
    sys.stdout.flush()


def run_rank(
    rank: int, port: int, config: str, overrides: list[str], points: dict[str, tuple[str, int]], resume: str
) -> int:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launched.items()}, MASTER_ADDR="127.0.0.1")
    faults = Faults(points, rank, run_directory_of(overrides))
    faults.strike("listing")
    FaultyLogging(faults).install()
    injector = FaultInjector(faults)
    status = launch(config, overrides, resume, callbacks=[injector])
    consolidated = sorted(path.name for path in (run_directory_of(overrides) / "consolidated").glob("*"))
    print(f"rank {rank} leaves behind {consolidated}")
    if injector.changed:
        print(f"rank {rank}: skipped steps have changed something: {injector.changed}")
    sys.stdout.flush()
    return status


def run_directory_of(overrides: list[str]) -> Path:
    (path,) = (o.partition("=")[2] for o in overrides if o.startswith("training.run_directory="))
    return Path(path)


def run_case(
    config: str, overrides: list[str], points: dict[str, tuple[str, int]], resume: str
) -> tuple[list[int], str]:
    run_directory = run_directory_of(overrides)
    disk_fills = "full disk" in (kind for kind, _ in points.values())
    if disk_fills:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(run_directory)], check=True)
    with tempfile.TemporaryFile() as output:
        port = free_port()
        pids = []
        for rank in range(RANKS):
            pids.append(os.fork())
            if pids[-1] == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                signal.alarm(LONGEST_CASE_SECONDS)
                os._exit(run_rank(rank, port, config, overrides, points, resume))
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        output.seek(0)
        if disk_fills and (run_directory / "checkpoints").is_dir():  # nobody else sees what is mounted here
            shutil.copytree(run_directory / "checkpoints", run_directory.with_name(f"{run_directory.name}-checkpoints"))
        return statuses, output.read().decode()


if __name__ == "__main__":
    silence_libraries()
    import_everything()
    for case in json.loads(Path(sys.argv[-1]).read_text()):
        print(json.dumps(run_case(*case)), flush=True)
