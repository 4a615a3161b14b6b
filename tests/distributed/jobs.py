"""A small corpus, small configurations, and real launches of several processes."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
import yaml

from nar_scale.training.metrics.names import find_metric

REPOSITORY = Path(__file__).parents[2]
TRAIN = REPOSITORY / "launcher" / "train.py"
SEQUENCE_LENGTH = 32

SMALL = {
    "model": {"dim": 32, "depth": 2, "heads": 2, "max_seq_len": SEQUENCE_LENGTH},
    "objective": {"kind": "non_autoregressive"},
    "optimizer": {"learning_rate": 3e-3},
    "schedule": {"warmup_steps": 2},
    "training": {"steps": 6, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"},
    "logging": {"every": 1},
}


def write_config(path: Path, data: Path, **sections: Mapping[str, object]) -> Path:
    """The small configuration on a prepared corpus, with sections updated."""
    values: dict[str, dict[str, object]] = {name: dict(section) for name, section in SMALL.items()}
    values["data"] = {"directory": str(data), "loader_workers": 0}
    for name, section in sections.items():
        values.setdefault(name, {}).update(section)
    path.write_text(yaml.safe_dump(values))
    return path


def free_port() -> int:
    """A port to listen at later: none of those that the system gives to whoever asks for any, meanwhile."""
    while True:
        port = 10_000 + secrets.randbelow(10_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def deepspeed_command(ranks: int, script: Path, *arguments: str) -> list[str]:
    launcher = Path(sys.executable).with_name("deepspeed")
    options = ["--quiet", "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [str(launcher), *options, str(script), *arguments]


def forked_command(ranks: int, script: Path, *arguments: str) -> list[str]:
    """As deepspeed_command, but of ranks that share their imports, which cost more than most runs."""
    module = "tests.distributed.forked_ranks"
    return [sys.executable, "-m", module, str(ranks), str(free_port()), str(script), *arguments]


def environment() -> dict[str, str]:
    """Of a user's shell: without what pytest or a surrounding job has set."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PYTEST"))}
    # one thread a process: two ranks fill the two cores of a small machine
    return {
        **ours,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def start(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def run(command: Sequence[str], status: int = 0, timeout: float = 300) -> str:
    """Run to the end and return what was printed; the exit status must be as expected."""
    process = start(command)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            kill(process)
    assert process.returncode == status, f"exit status {process.returncode} instead of {status}:\n{output}"
    return output


def processes_of(process: "subprocess.Popen[str]") -> list[int]:
    """All living processes of a launch."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == process.pid:
                found.append(pid)
    return found


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL the launcher and all its ranks at once, as a power loss would."""
    for pid in processes_of(process):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def metrics(run_directory: Path) -> dict[int, dict[str, float]]:
    """The training lines of the metrics log by step."""
    path = run_directory / "metrics.jsonl"
    if not path.exists():
        return {}
    complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    lines = [json.loads(line) for line in complete]
    assert not {name for line in lines for name in line if find_metric(name) is None}
    return {line["step"]: line for line in lines if "loss" in line}


def losses(run_directory: Path) -> dict[int, float]:
    return {step: line["loss"] for step, line in metrics(run_directory).items()}


def wait_for_step(process: "subprocess.Popen[str]", run_directory: Path, step: int, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while max(losses(run_directory), default=0) < step:
        assert process.poll() is None, f"ended before step {step}:\n{process.stdout.read() if process.stdout else ''}"
        assert time.monotonic() < deadline, f"step {step} not reached in {timeout} seconds"
        time.sleep(0.05)


def run_forked(
    directory: Path,
    *cases: tuple[Path | str, Sequence[str], str]
    | tuple[Path | str, Sequence[str], str, str]
    | tuple[Path | str, Sequence[str], str, None, Mapping[str, str]],
) -> list[tuple[int, str]]:
    """Single-process runs of `train.py`, as (config, overrides, resume), or with init_from or additions to the
    environment; returns exit statuses and outputs."""
    listing = directory / "cases.json"
    listing.write_text(json.dumps([[str(config), list(overrides), *more] for config, overrides, *more in cases]))
    output = run([sys.executable, "-m", "tests.distributed.fork_cases", str(listing)])
    return [(status, text) for status, text in json.loads(output.splitlines()[-1])]


class Outcomes:
    """Exit status and output of runs, by name."""

    def __init__(self, results: Mapping[str, tuple[int, str]]):
        self.results = results

    def output(self, name: str) -> str:
        """Of a run that was completed."""
        status, output = self.results[name]
        assert status == 0, output
        return output

    def error(self, name: str) -> str:
        """The line in which a run was refused."""
        status, output = self.results[name]
        assert status == 2, output
        assert "Traceback" not in output
        (line,) = [line for line in output.splitlines() if "error" in line]
        return line


def train_in_one_launch(directory: Path, *cases: tuple[Path, Sequence[str]], ranks: int = 2) -> None:
    """Train (config, overrides) one after the other in a single launch.

    Among overrides `stop_after=STEP` stops there, as if asked to, and `init_from=DIR` starts from weights.
    """
    listing = directory / "cases.json"
    listing.write_text(json.dumps([[str(config), list(overrides)] for config, overrides in cases]))
    script = Path(__file__).with_name("train_cases.py")
    run(forked_command(ranks, script, str(listing)), timeout=300 + 10 * len(cases))


def assert_near(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], relative: float) -> None:
    """Of each weight, the difference's norm over that of the weight.

    Not element by element: where a gradient is all but zero, Adam turns the rounding of it, which is another on
    another kind of CPU, into steps of full size.
    """
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        difference = (weights[name].float() - weight).norm().item()
        assert difference <= relative * weight.norm().item() + 1e-6, (name, difference)
