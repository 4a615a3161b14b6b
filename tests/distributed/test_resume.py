"""Killed, signalled and damaged runs go on as if nothing had happened."""

import os
import signal
from pathlib import Path

import pytest

from nar_scale.checkpoint import CheckpointStore
from nar_scale.training import RESUMABLE_EXIT_STATUS

from . import jobs

STEPS = 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    training = {"steps": STEPS, "zero_stage": 2}
    model = {"dropout": 0.1}  # whose random numbers have to be restored, too
    path = tmp_path_factory.mktemp("resume") / "resume.yaml"
    return jobs.write_config(path, corpus, training=training, model=model, checkpoint={"every": 50, "keep_last": 4})


def command(config: Path, run_directory: Path, *overrides: str, ranks: int = 2) -> list[str]:
    arguments = ("--config", str(config), f"training.run_directory={run_directory}", *overrides)
    return jobs.deepspeed_command(ranks, jobs.TRAIN, *arguments)


@pytest.fixture(scope="module")
def unbroken(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    directory = tmp_path_factory.mktemp("unbroken")
    jobs.run(command(config, directory))
    return jobs.losses(directory)


def test_kill_and_resume(config: Path, unbroken: dict[int, float], tmp_path: Path) -> None:
    process = jobs.start(command(config, tmp_path))
    jobs.wait_for_step(process, tmp_path, 110)
    jobs.kill(process)
    reached = max(jobs.losses(tmp_path))
    assert reached < STEPS
    output = jobs.run(command(config, tmp_path))
    assert f"resuming at step {reached // 50 * 50} of" in output
    assert list(unbroken) == list(range(1, STEPS + 1))
    assert jobs.losses(tmp_path) == unbroken  # bit for bit
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [50, 100, 150, 200]


def test_damaged_newest_checkpoint_is_passed_over(config: Path, unbroken: dict[int, float], tmp_path: Path) -> None:
    jobs.run(command(config, tmp_path, "training.steps=100", "schedule.kind=constant"))
    store = CheckpointStore(tmp_path / "checkpoints")
    damaged = next(store.path(100).glob("*optim_states.pt"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    output = jobs.run(command(config, tmp_path, "training.steps=60", "schedule.kind=constant"))
    assert "damaged and passed over" in output
    assert damaged.name in output
    assert "resuming at step 50 of 60" in output


def test_one_signalled_rank_stops_all(config: Path, unbroken: dict[int, float], tmp_path: Path) -> None:
    process = jobs.start(command(config, tmp_path))
    jobs.wait_for_step(process, tmp_path, 10)
    ranks = [pid for pid in jobs.processes_of(process) if "--local_rank=1" in command_line(pid)]
    os.kill(ranks[0], signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == RESUMABLE_EXIT_STATUS, output
    assert "stopped as asked" in output
    stopped = max(jobs.losses(tmp_path))
    assert CheckpointStore(tmp_path / "checkpoints").steps()[-1] == stopped
    jobs.run(command(config, tmp_path))
    assert jobs.losses(tmp_path) == unbroken


def test_another_world_size_is_refused_in_one_line(config: Path, tmp_path: Path) -> None:
    short = ("training.steps=4", "schedule.warmup_steps=2")
    jobs.run(command(config, tmp_path, *short))
    output = jobs.run(command(config, tmp_path, *short, ranks=1), status=2)
    assert "was written by 2 rank(s) with ZeRO 2; this run has 1 rank(s)" in output
    assert "Traceback" not in output


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
