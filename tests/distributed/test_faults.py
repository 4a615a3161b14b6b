"""What breaks in a run, and how it ends: docs/training.md, "When things break"."""

import json
import re
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from nar_scale.checkpoint import CheckpointStore, TrainingState, verify_integrity
from nar_scale.config import load_config
from nar_scale.training import RESUMABLE_EXIT_STATUS

from . import jobs
from .whole_batches import whole_batches

DRIVER = "tests.distributed.fault_cases"
pytestmark = pytest.mark.timeout(1800)  # one launch has all cases
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
STEPS = 12

# the moments of step 7 make the weights NaN, so that from then on no loss is finite; the newest checkpoint is of step 4
SKIPS = {"step 2": ("nan loss", 1), "step 3": ("inf loss", 0), "step 5": ("nan gradient", 1)}
DIVERGED = {"step 7": ("nan moments", 1)}
ROLL_BACK = ["faults.on_non_finite=roll_back", "faults.max_non_finite_steps=3"]
AT_ONCE = ["faults.on_non_finite=roll_back", "faults.max_roll_backs=1", "faults.max_non_finite_steps=1"]
SPIKES = ["faults.spike_window=8"]
WATCHED = ["logging.evaluate_every=2", "logging.evaluation_samples=800"]
LONG = 1000
HANGING = ["faults.step_timeout_seconds=4", f"faults.long_timeout_seconds={LONG}"]
OFTEN = ["checkpoint.every=1"]
EVERY_STEP = range(1, STEPS + 1)

FaultPoints = dict[str, tuple[str, int]]
CASES: dict[str, tuple[list[str], FaultPoints]] = {
    **{
        f"roll-back-{stage}-{precision}": (
            [*ROLL_BACK, f"training.zero_stage={stage}", f"training.precision={precision}"],
            {**SKIPS, **DIVERGED},
        )
        for stage in STAGES
        for precision in PRECISIONS
    },
    **{
        f"stop-{stage}": (
            [
                "faults.max_non_finite_steps=2",
                f"training.zero_stage={stage}",
                "logging.every=4",
                "logging.sample_every=5",
            ],
            {"step 5": ("nan moments", 1)},
        )
        for stage in STAGES
    },
    "stop-beside": (
        ["faults.max_non_finite_steps=1", "checkpoint.consolidate_every=4"],
        {"step 5": ("nan loss", 1)},
    ),
    "consolidated": ([f"checkpoint.consolidate_every={STEPS}"], {}),
    "other-layout": (["training.zero_stage=2", "training.precision=bf16"], {"listing": ("round robin", -1)}),
    "too-often": (AT_ONCE, {"step 6": ("nan loss", 1), "step 8": ("nan loss", 0)}),
    "nothing-saved": (AT_ONCE, {"step 2": ("nan loss", 1)}),
    "spike": (SPIKES, {"step 10": ("spike", 1)}),
    "skipped-spike": ([*SPIKES, "faults.skip_spikes=true"], {"step 10": ("spike", 1)}),
    "term-one": ([], {"step 6": ("term", 1)}),
    "term-all": ([], {"step 6": ("term", -1)}),
    "term-starting": ([], {"start": ("term", 1)}),
    "term-evaluation": (WATCHED, {"evaluation 5": ("term", 1)}),
    "term-sampling": (["logging.sample_every=2"], {"sampling 1": ("term", 0)}),
    "term-save": ([], {"save 1": ("term", 0)}),
    "term-hung-save": (["faults.stop_deadline_seconds=4"], {"step 3": ("term", 1), "save 1": ("sleep", 0)}),
    "sleep": (HANGING, {"step 3": ("sleep", 1)}),
    "memory": ([], {"step 3": ("memory", 1)}),
    "killed": ([], {"step 3": ("kill", 1)}),
    "slow": (["faults.straggler_ratio=1.2", "logging.every=3"], {f"step {step}": ("slow", 1) for step in EVERY_STEP}),
    "full-disk": ([*OFTEN, "logging.every=100"], {"step 3": ("full disk", 0)}),
    "full-disk-beside": (
        ["checkpoint.asynchronous=true", "checkpoint.every=3", "logging.every=100"],
        {"save 2": ("full disk", 0), "after save 2": ("slow", 1)},
    ),
    "full-disk-metrics": (["logging.every=1"], {"step 3": ("full disk", 0)}),
    "read-only": (OFTEN, {"step 3": ("read-only", 0)}),
    "surprise": ([], {"partitions 1": ("surprise", 1)}),
    "taken-over": ([], {"partitions 1": ("taken over", 1)}),
    "no-memory-beside": (
        ["checkpoint.asynchronous=true", "faults.long_timeout_seconds=30000"],
        {"partitions 1": ("no memory", 1)},
    ),
    "again": ([], {"listing": ("stale", 1)}),
}
AGAIN = {"again": ("stop-0", "never")}  # in the directory of another case, and how
MOUNTED = ("full-disk", "full-disk-beside", "full-disk-metrics", "read-only")


def private_mounts() -> list[str]:
    """A prefix of commands that may mount what nobody else sees, if this machine lets us."""
    for prefix in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], check=False).returncode == 0:
            return prefix
    return []


class Launch:
    """All cases in one start of the driver."""

    def __init__(self, directory: Path, corpus: Path, only: str = ""):
        self.directory = directory
        config = jobs.write_config(
            directory / "small.yaml",
            corpus,
            model={"depth": 1},
            schedule={"kind": "constant"},
            training={"steps": STEPS, "micro_batch_size": 4},
            checkpoint={"every": 4},
        )
        self.prefix = private_mounts()
        self.names = [name for name in CASES if only in name and (self.prefix or name not in MOUNTED)]
        cases = []
        for name in self.names:
            overrides, points = CASES[name]
            folder, resume = AGAIN.get(name, (name, "auto"))
            (directory / folder).mkdir(exist_ok=True)
            cases.append((str(config), [*overrides, f"training.run_directory={directory / folder}"], points, resume))
        listing = directory / "cases.json"
        listing.write_text(json.dumps(cases))
        command = [*self.prefix, sys.executable, "-m", DRIVER, str(listing)]
        results = [json.loads(line) for line in jobs.run(command, timeout=40 * len(cases)).splitlines()[-len(cases) :]]
        self.results: dict[str, tuple[list[int], str]] = dict(zip(self.names, results, strict=True))

    def lines(self, name: str, part: str = "") -> list[str]:
        return [line for line in self.results[name][1].splitlines() if part in line]

    def error(self, name: str) -> str:
        """The only line about the end of a case that has failed."""
        (error,) = self.lines(name, "error")
        assert not self.lines(name, "Traceback")
        assert error.startswith("train: error: ")
        return error.removeprefix("train: error: ")

    def statuses(self, name: str) -> list[int]:
        return self.results[name][0]

    def checkpoints(self, name: str) -> CheckpointStore:
        elsewhere = self.directory / f"{name}-checkpoints"
        return CheckpointStore(elsewhere if elsewhere.exists() else self.directory / name / "checkpoints")

    def state(self, name: str) -> TrainingState:
        """Of the newest checkpoint, which is whole."""
        store = self.checkpoints(name)
        newest = store.path(store.steps()[-1])
        assert verify_integrity(newest) is None
        return TrainingState.load(newest)


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("faults"), corpus)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_skipped_step_changes_nothing_and_a_roll_back_repairs_the_weights(
    launch: Launch, stage: int, precision: str
) -> None:
    name = f"roll-back-{stage}-{precision}"
    assert launch.statuses(name) == [0, 0], launch.results[name][1]
    assert launch.lines(name, "have changed something") == []
    skipped = launch.lines(name, " skipped: ")
    assert skipped[0].startswith("step 2 skipped: the loss of rank 1 is not finite; samples ")
    assert skipped[1].startswith("step 3 skipped: the loss of rank 0 is not finite; samples ")
    assert skipped[2].startswith("step 5 skipped: the gradient is not finite; samples ")
    assert skipped[3].startswith("step 8 skipped: ")
    (line,) = launch.lines(
        name, "rolled back to step 4 (1 of at most 3), as weights or moments are not finite at step 8"
    )
    assert "going on with sample 64 " in line
    state = launch.state(name)
    assert (state.step, state.samples, state.skipped_steps, state.roll_backs) == (STEPS, STEPS * 8 + 32, 4, 1)
    # what was reported before the roll back is gone, and steps that were skipped have no loss
    metrics = [json.loads(line) for line in (launch.directory / name / "metrics.jsonl").read_text().splitlines()]
    metrics = [line for line in metrics if "tokens_per_second" in line]
    losses = [(line["step"], line.get("loss")) for line in metrics]
    assert [step for step, _ in losses] == list(EVERY_STEP)
    assert [step for step, loss in losses if loss is None] == [2, 3]
    assert losses[-1][1] < losses[0][1] - 0.5
    assert metrics[-1]["skipped_steps"] == 4


def test_all_stages_go_on_with_the_same_samples(launch: Launch) -> None:
    expected = jobs.losses(launch.directory / "roll-back-0-fp32")
    for stage in STAGES[1:]:
        assert jobs.losses(launch.directory / f"roll-back-{stage}-fp32") == pytest.approx(expected, rel=1e-5)


def test_the_samples_of_a_skipped_step_are_named(launch: Launch) -> None:
    config = load_config(launch.directory / "small.yaml")
    second = next(islice(whole_batches(config), 1, None))
    (line,) = launch.lines("roll-back-2-fp32", "step 2 skipped")
    named = line.partition("; samples ")[2].split(", ")
    runs = [(int(run.split("-")[0]), int(run.split("-")[-1])) for run in named]
    assert [i for first, last in runs for i in range(first, last + 1)] == sorted(second.sample_ids.tolist())


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_are_not_finite_are_never_saved(launch: Launch, stage: int) -> None:
    name = f"stop-{stage}"
    assert launch.statuses(name) == [2, 2]
    error = launch.error(name)
    assert error.startswith("2 step(s) in a row up to step 7 had no finite gradient; lower optimizer.learning_rate or ")
    assert launch.checkpoints(name).steps() == [4]
    if stage > 0:  # otherwise the weights of rank 0, which samples, are still finite
        assert len(launch.lines(name, "no samples at step 5")) == 1  # and the run went on, so that it might roll back


def test_roll_backs_come_to_an_end(launch: Launch) -> None:
    assert len(launch.lines("too-often", "rolled back to step 4")) == 1
    assert "1 step(s) in a row up to step 6 had no finite gradient after 1 roll back(s);" in launch.error("too-often")
    assert launch.statuses("too-often") == [2, 2]
    assert "run again, to go on from the last checkpoint if there is one" in launch.error("nothing-saved")
    assert launch.statuses("nothing-saved") == [2, 2]


def test_spikes_are_announced_and_skipped_on_request(launch: Launch) -> None:
    announced = r"the loss of step 10 is \d+\.?\d*, \d+\.\d standard deviations above the mean"
    (line,) = launch.lines("spike", "standard deviations")
    assert re.fullmatch(f"{announced} of the 8 steps before", line)
    assert launch.state("spike").samples == STEPS * 8
    (line,) = launch.lines("skipped-spike", "standard deviations")
    assert re.search(announced, line)
    assert "rolled back to step 8" in line
    assert launch.state("skipped-spike").samples == STEPS * 8 + 16


@pytest.mark.parametrize(
    ("name", "step"),
    [("term-one", 7), ("term-all", 7), ("term-evaluation", 2), ("term-sampling", 2), ("term-save", 5)],
)
def test_a_signal_ends_in_a_checkpoint(launch: Launch, name: str, step: int) -> None:
    assert launch.statuses(name) == [RESUMABLE_EXIT_STATUS] * 2, launch.results[name][1]
    assert launch.state(name).step == step
    assert launch.lines(name, "error") == []
    assert launch.lines(name, "validation: ") == []


def test_a_signal_before_the_first_step_ends_without_training(launch: Launch) -> None:
    assert launch.statuses("term-starting") == [RESUMABLE_EXIT_STATUS] * 2
    assert launch.checkpoints("term-starting").steps() == []
    assert launch.lines("term-starting", "nothing to save yet")


def test_a_save_that_hangs_does_not_outlive_the_deadline(launch: Launch) -> None:
    assert launch.statuses("term-hung-save") == [1, 1]
    assert "asked to stop 4 s ago and still saving a checkpoint" in launch.error("term-hung-save")
    assert launch.checkpoints("term-hung-save").steps() == []


def test_a_rank_that_sleeps_is_named_and_all_leave_their_stacks(launch: Launch) -> None:
    assert launch.statuses("sleep") == [1, 1]
    assert launch.error("sleep").startswith(
        "rank 1 is in 'forward pass' and has kept rank 0 waiting in 'backward pass'"
    )
    waiting, sleeping = ((launch.directory / "sleep" / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(2))
    assert "torch/distributed" in waiting
    assert "torch/distributed" not in sleeping
    assert "in strike" in sleeping


def test_collectives_wait_longer_than_the_watchdogs(launch: Launch) -> None:
    for name, limit in (("sleep", LONG), ("memory", 3600)):
        lines = launch.lines(name, " waits in ")
        assert len(lines) == 2
        for line in lines:
            # of torch, of DeepSpeed, and what waits for the main process alone
            assert re.search(rf" [3-9] groups for \[{limit + 120}\.0, 21600\.0\] s$", line)


def test_running_out_of_memory_is_reported_in_a_line(launch: Launch) -> None:
    assert launch.statuses("memory")[1] == 2
    error = launch.error("memory")
    assert error.startswith("out of host memory in 'forward pass', with micro-batches of 4 x 32 tokens and a peak of ")
    assert "try training.micro_batch_size below 4, model.activation_checkpointing full, training.zero_stage 3" in error


def test_survivors_of_a_killed_rank_say_so(launch: Launch) -> None:
    assert launch.statuses("killed") == [1, -signal.SIGKILL]
    assert "the connection to another process was lost" in launch.error("killed")


def test_a_slow_rank_is_named(launch: Launch) -> None:
    (line,) = launch.lines("slow", "is slow")
    assert re.match(r"rank 1 is slow: for 3 reports its own work has taken (1\.\d|2\.0) times", line)
    last = jobs.metrics(launch.directory / "slow")[STEPS]
    assert last["slowest_rank"] == 1
    assert 1.2 < last["slowest_rank_ratio"] <= 2


@pytest.mark.parametrize(
    ("name", "message", "remedy", "saved"),
    [
        ("full-disk", "No space left on device", "free some space", 2),
        ("full-disk-beside", "No space left on device", "free some space", 3),
        ("full-disk-metrics", "No space left on device", "free some space", None),
        ("read-only", "Read-only file system", "mount it writable", 2),
    ],
)
def test_a_disk_that_refuses_is_reported_in_a_line(
    launch: Launch, name: str, message: str, remedy: str, saved: int | None
) -> None:
    if name not in launch.names:
        pytest.skip("nothing can be mounted here")
    assert launch.statuses(name)[0] == 2
    error = launch.error(name)
    assert str(launch.directory / name) in error
    assert message in error
    assert f"{remedy}, or set another training.run_directory" in error
    assert launch.checkpoints(name).steps()[-1:] == ([] if saved is None else [saved])
    assert not list(launch.checkpoints(name).directory.glob(".writing-*"))  # which would keep the disk full
    if saved is not None:
        assert launch.state(name).step == saved


def test_weights_in_an_order_that_checkpoints_do_not_know_are_refused(launch: Launch) -> None:
    assert launch.statuses("other-layout") == [2, 2]
    assert "at another position than checkpoints would read" in launch.error("other-layout")


def test_the_rank_that_cannot_write_says_why(launch: Launch) -> None:
    assert launch.statuses("surprise") == [1, 1]
    assert launch.lines("surprise", "RuntimeError: ") == ["RuntimeError: a surprise"]
    assert launch.lines("surprise", "train: error") == []
    assert launch.statuses("no-memory-beside") == [1, 2]
    assert launch.error("no-memory-beside").startswith("out of host memory in ")
    for name in ("surprise", "no-memory-beside"):
        assert launch.checkpoints(name).steps() == []


def test_a_run_that_another_attempt_has_taken_over_from_says_so_whichever_rank_fails_first(launch: Launch) -> None:
    assert launch.statuses("taken-over") == [2, 2]
    assert f"{launch.directory / 'taken-over'} has been taken over by process 4711 on " in launch.error("taken-over")
    assert launch.checkpoints("taken-over").steps() == []


def test_who_writes_beside_the_run_waits_as_long_as_all(launch: Launch) -> None:
    lines = launch.lines("no-memory-beside", " waits in ")
    assert len(lines) == 4
    assert all(line.endswith(" groups for [30120.0] s") for line in lines)


def test_all_ranks_wait_for_consolidation(launch: Launch) -> None:
    assert launch.statuses("consolidated") == [0, 0]
    lines = launch.lines("consolidated", " leaves behind ")
    assert sorted(lines) == [f"rank {rank} leaves behind ['step-{STEPS:09d}']" for rank in range(2)]


def test_consolidation_does_not_outlive_a_run_that_fails(launch: Launch) -> None:
    assert launch.statuses("stop-beside") == [2, 2]
    assert launch.checkpoints("stop-beside").steps() == [4]
    assert not list((launch.directory / "stop-beside" / "consolidated").glob("*"))


def test_all_ranks_see_the_same_checkpoints(launch: Launch) -> None:
    assert launch.statuses("again") == [2, 2]
    assert "holds checkpoints up to step 4; --resume never would overwrite" in launch.error("again")


def test_all_ranks_end_at_the_same_step_when_a_checkpoint_cannot_be_written_beside_the_run(launch: Launch) -> None:
    if "full-disk-beside" not in launch.names:
        pytest.skip("nothing can be mounted here")
    assert launch.statuses("full-disk-beside") == [2, 2]  # rank 1, which learns of it later, has lost no connection
