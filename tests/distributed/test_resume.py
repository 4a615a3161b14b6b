"""Signalled, killed and damaged runs go on as if nothing had happened."""

import os
import signal
from pathlib import Path

import pytest

from nar_scale.checkpoint import CheckpointStore, TrainingState, partition_file
from nar_scale.training import RESUMABLE_EXIT_STATUS

from . import jobs

STEPS = 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    training = {"steps": STEPS, "zero_stage": 2}
    model = {"dropout": 0.1}  # whose random numbers have to be restored, too
    path = tmp_path_factory.mktemp("resume") / "resume.yaml"
    return jobs.write_config(path, corpus, training=training, model=model, checkpoint={"every": 50, "keep_last": 4})


def test_interrupted_run_equals_the_unbroken_one(config: Path, tmp_path: Path) -> None:
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"

    def command(directory: Path) -> list[str]:
        arguments = ("--config", str(config), f"training.run_directory={directory}")
        return jobs.deepspeed_command(2, jobs.TRAIN, *arguments)

    jobs.run(command(unbroken))
    expected = jobs.losses(unbroken)
    assert list(expected) == list(range(1, STEPS + 1))

    process = jobs.start(command(broken))
    jobs.wait_for_step(process, broken, 10)
    second_rank = next(pid for pid in jobs.processes_of(process) if "--local_rank=1" in command_line(pid))
    os.kill(second_rank, signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == RESUMABLE_EXIT_STATUS, output
    assert "stopped as asked" in output
    stopped = max(jobs.losses(broken))
    assert stopped < STEPS
    assert CheckpointStore(broken / "checkpoints").steps() == [*range(50, stopped, 50), stopped]

    process = jobs.start(command(broken))
    jobs.wait_for_step(process, broken, 110)
    jobs.kill(process)
    reached = max(jobs.losses(broken))
    assert reached < STEPS

    output = jobs.run(command(broken))
    assert f"resuming at step {max(reached // 50 * 50, stopped)} of" in output
    assert jobs.losses(broken) == expected  # bit for bit


def test_damaged_newest_checkpoint_is_passed_over(config: Path, tmp_path: Path) -> None:
    run_directory = f"training.run_directory={tmp_path}"
    every_four = ["schedule.kind=constant", "checkpoint.every=4", run_directory]
    ((status, output),) = jobs.run_forked(tmp_path, (config, ["training.steps=8", *every_four], "auto"))
    assert status == 0, output
    store = CheckpointStore(tmp_path / "checkpoints")
    damaged = store.path(8) / partition_file(0)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again, never, path = jobs.run_forked(
        tmp_path,
        (config, ["training.steps=6", *every_four], "auto"),
        (config, every_four, "never"),
        (config, ["training.steps=5", *every_four], str(store.path(4))),
    )
    assert again[0] == 0
    assert "damaged and passed over" in again[1]
    assert damaged.name in again[1]
    assert "resuming at step 4 of 6" in again[1]
    assert never[0] == 2
    assert "--resume never would overwrite them" in never[1]
    assert path[0] == 0
    assert "resuming at step 4 of 5" in path[1]
    assert store.steps() == [4, 5]
    assert len(list(store.directory.glob(".superseded-*"))) == 2

    # another run's checkpoint is where a run starts, not where it is thrown back to when its job is queued again
    elsewhere = [*every_four[:2], f"training.run_directory={tmp_path / 'other'}"]
    first, second = jobs.run_forked(
        tmp_path,
        (config, ["training.steps=5", *elsewhere], str(store.path(4))),
        (config, ["training.steps=6", *elsewhere], str(store.path(4))),
    )
    assert "resuming at step 4 of 5" in first[1]
    assert "resuming at step 5 of 6" in second[1]


def test_other_data_than_the_checkpoint_has_seen_is_refused(config: Path, tmp_path: Path) -> None:
    settings = ["training.steps=4", f"training.run_directory={tmp_path}"]
    warmup = "training.batch_size_warmup=[{from_step: 0, global_batch_size: %d}, {from_step: %d, global_batch_size: 4}]"
    smaller = [*settings, "training.global_batch_size=4"]
    first, *others, longer = jobs.run_forked(
        tmp_path,
        (config, settings, "auto"),
        (config, [*settings, "training.seed=1"], "auto"),
        (config, smaller, "auto"),
        (config, [*smaller, warmup % (8, 3)], "auto"),
        (config, [*settings, "data.shuffle_window=2"], "auto"),
        (config, [*settings, "model.heads=4"], "auto"),
        (config, [*settings, "data.train=validation/*.tar"], "auto"),
        (config, [*smaller, warmup % (8, 4), "training.steps=6"], "auto"),
    )
    assert first[0] == 0, first[1]
    keys = (
        "training.seed 0",
        "took step 1 with 8 sequences, but by training.global_batch_size it would have had 4",
        "took step 4 with 8 sequences, but by training.batch_size_warmup it would have had 4",
        "data.shuffle_window 8",
        "model.heads 2",
        "fingerprint",
    )
    assert longer[0] == 0, longer[1]
    last = CheckpointStore(tmp_path / "checkpoints").path(6)
    assert TrainingState.load(last).samples == 4 * 8 + 2 * 4
    for (status, output), key in zip(others, keys, strict=True):
        assert status == 2
        assert key in output


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
