"""Signalled, killed and damaged runs go on as if nothing had happened."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from nar_scale.checkpoint import CheckpointStore, TrainingState, partition_file
from nar_scale.errors import CheckpointError
from nar_scale.planning.data_sets import mixture_of
from nar_scale.training import RESUMABLE_EXIT_STATUS
from nar_scale.training.checkpointing.resume_rules import check_same_batch_sizes, check_same_stream
from tests.config.helpers import config_with

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
    assert f"in the data of {store.path(4)}" in " ".join(path[1].split())
    assert store.steps() == [4, 5]
    assert len(list(store.directory.glob(".superseded-*"))) == 2

    # another run's checkpoint is where a run starts, not where it is thrown back to when its job is queued again
    elsewhere = [*every_four[:2], f"training.run_directory={tmp_path / 'other'}"]
    requeued = {"SLURM_RESTART_COUNT": "1"}  # perhaps before there was anything to save
    outputs = jobs.run_forked(
        tmp_path,
        (config, ["training.steps=5", *elsewhere], str(store.path(4)), None, requeued),
        (config, ["training.steps=6", *elsewhere], str(store.path(4))),
        (config, ["training.steps=6", *every_four], str(store.path(4)), None, requeued),
        (config, ["training.steps=7", *every_four], "never", None, requeued),
    )
    for (_, output), steps in zip(outputs, ("4 of 5", "5 of 6", "5 of 6", "6 of 7"), strict=True):
        assert f"resuming at step {steps}" in output

    for step in store.steps():
        shutil.rmtree(store.path(step))
    ((status, output),) = jobs.run_forked(tmp_path, (config, ["training.steps=7", *every_four], "auto"))
    assert status == 2
    assert f"train: error: {store.pointer} is there, but no checkpoint" in output


def test_other_data_than_the_checkpoint_has_seen_is_refused(config: Path, tmp_path: Path) -> None:
    settings = ["training.steps=4", f"training.run_directory={tmp_path}"]
    warmup = "training.batch_size_warmup=[{from_step: 0, global_batch_size: %d}, {from_step: %d, global_batch_size: 4}]"
    smaller = [*settings, "training.global_batch_size=4"]
    first, *others, longer, without_warmup = jobs.run_forked(
        tmp_path,
        (config, settings, "auto"),
        (config, [*settings, "training.seed=1"], "auto"),
        (config, smaller, "auto"),
        (config, [*smaller, warmup % (8, 3)], "auto"),
        (config, [*settings, "data.shuffle_window=2"], "auto"),
        (config, [*settings, "model.heads=4"], "auto"),
        (config, [*settings, "data.train=validation/*.tar"], "auto"),
        (config, [*smaller, warmup % (8, 4), "training.steps=6"], "auto"),
        (config, [*smaller, "training.steps=7"], "auto"),
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
    for (status, output), key in zip([*others, without_warmup], [*keys, keys[1]], strict=True):
        assert status == 2
        assert key in output


def test_another_batch_size_of_a_sequential_stream_has_no_remedy_that_would_be_refused() -> None:
    saved = config_with(**{"data.sequential": True})
    smaller = config_with(**{"data.sequential": True, "training.global_batch_size": 4})
    with pytest.raises(CheckpointError, match=r"step-000000002.* 8 .* 4\b.*training\.run_directory") as caught:
        check_same_batch_sizes(smaller, saved, Path("step-000000002"), 2)
    assert "batch_size_warmup" not in str(caught.value)


def test_after_a_roll_back_the_step_named_is_one_from_which_weights_may_change() -> None:
    """At step 9 the stream is at sample 96, where step 12 would begin."""
    sources = {name: {"directory": name, "weight": 1.0} for name in ("a", "b")}
    counts = {name: np.array([100]) for name in sources}

    def consumed(**curriculum: object) -> dict[str, int]:
        mixture = mixture_of(config_with(**{"data": {"sources": sources, **curriculum}}), counts)
        return dict(zip(counts, mixture.consumed(96).tolist()))

    def changed_from(step: int) -> dict[str, int]:
        return consumed(curriculum=[{"from_step": step, "weights": {"b": 1.0}}])

    state = TrainingState(9, 96, "f", 0, 8, 1, 2, 257, "byte", 256, consumed())
    training = config_with().training
    for step in (9, 11):
        with pytest.raises(CheckpointError, match=r"step 12\b"):
            check_same_stream(state, state, changed_from(step), {}, training, Path("step-000000009"))
    check_same_stream(state, state, changed_from(12), {}, training, Path("step-000000009"))


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
