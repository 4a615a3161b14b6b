"""Checkpoints written beside the run, consolidated during it, and weights that other runs start from."""

import shutil
from pathlib import Path

import pytest
import torch

from nar_scale.checkpoint import (
    WEIGHT,
    CheckpointStore,
    PartitionReader,
    consolidate,
    load_consolidated,
    verify_integrity,
)

from . import jobs

STEPS = 12
EVERY = ["checkpoint.every=3", "checkpoint.keep_last=1", f"training.steps={STEPS}", "training.ema_decay=0.9"]
BESIDE = {
    "asynchronous": ["checkpoint.asynchronous=true"],
    "consolidated": ["checkpoint.consolidate_every=6", "checkpoint.asynchronous=true"],
    "consolidated-3": ["checkpoint.consolidate_every=7", "training.zero_stage=3"],
}


class Launch:
    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        self.config = jobs.write_config(directory / "small.yaml", corpus)
        cases = {"plain": [], **BESIDE}
        # what another attempt made and this one makes anew
        (directory / "consolidated" / "consolidated" / ".superseded-step-000000006").mkdir(parents=True)
        jobs.train_in_one_launch(
            directory,
            *(
                (self.config, [*EVERY, *settings, f"training.run_directory={directory / name}"])
                for name, settings in cases.items()
            ),
        )

    def store(self, name: str) -> CheckpointStore:
        return CheckpointStore(self.directory / name / "checkpoints")


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("saving"), corpus)


def assert_equal(some: Path, others: Path) -> None:
    with PartitionReader(some) as ours, PartitionReader(others) as theirs:
        assert ours.kinds == theirs.kinds
        assert ours.scalars == theirs.scalars
        for name, kinds in ours.kinds.items():
            for kind in kinds:
                assert torch.equal(ours.whole(kind, name), theirs.whole(kind, name))


@pytest.mark.parametrize("name", ["asynchronous", "consolidated"])
def test_a_checkpoint_written_beside_the_run_is_the_same(launch: Launch, name: str) -> None:
    assert launch.store(name).steps() == launch.store("plain").steps() == [STEPS]
    assert verify_integrity(launch.store(name).path(STEPS)) is None
    assert_equal(launch.store(name).path(STEPS), launch.store("plain").path(STEPS))
    assert jobs.losses(launch.directory / name) == jobs.losses(launch.directory / "plain")


@pytest.mark.parametrize(("name", "steps"), [("consolidated", (6, 12)), ("consolidated-3", (7, 12))])
def test_consolidated_while_it_runs(launch: Launch, name: str, steps: tuple[int, ...], tmp_path: Path) -> None:
    made = launch.directory / name / "consolidated"
    assert sorted(path.name for path in made.iterdir()) == [f"step-{step:09d}" for step in steps]
    consolidate(launch.directory / name, tmp_path / "by_hand")
    cards = [(path / "README.md").read_text() for path in (tmp_path / "by_hand", path_of(made))]
    assert cards[0] == cards[1]
    assert f"# {name}\n" in cards[0]
    for kind in ("model", "ema"):
        by_hand, beside = (
            load_consolidated(tmp_path / "by_hand", weights=kind),
            load_consolidated(path_of(made), weights=kind),
        )
        assert beside.info == by_hand.info
        for ours, theirs in zip(beside.wrapper.parameters(), by_hand.wrapper.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert [load_consolidated(made / f"step-{step:09d}").info.step for step in steps] == list(steps)


def path_of(made: Path) -> Path:
    return made / f"step-{STEPS:09d}"


def test_another_run_starts_from_the_weights(launch: Launch, tmp_path: Path) -> None:
    consolidated = path_of(launch.directory / "consolidated" / "consolidated")
    training = launch.store("plain").path(STEPS)
    shutil.copytree(training, tmp_path / "copy")
    (tmp_path / "copy" / "state.json").write_text("{}")
    later = tmp_path / "from_training" / "consolidated" / "step-000000003"
    later.mkdir(parents=True)  # than the checkpoint that is resumed
    no_steps = ["training.steps=1", "schedule.warmup_steps=0", "optimizer.learning_rate=1e-30"]
    other = ["model.dim=64", *no_steps]

    def case(name: str, source: Path | str, settings: list[str]) -> tuple[Path, list[str], str, str]:
        return self_config, [*settings, f"training.run_directory={tmp_path / name}"], "auto", str(source)

    self_config = launch.config
    outcomes = jobs.run_forked(
        tmp_path,
        case("from_consolidated", consolidated, no_steps),
        case("from_training", training, [*no_steps, "training.zero_stage=3"]),
        case("other_model", consolidated, other),
        case("damaged", tmp_path / "copy", no_steps),
        case("nothing", tmp_path / "absent", no_steps),
        case("from_training", tmp_path / "absent", ["training.steps=3", "training.zero_stage=3"]),  # resumed instead
    )
    with PartitionReader(training) as expected:
        for name in ("from_consolidated", "from_training"):
            with PartitionReader(CheckpointStore(tmp_path / name / "checkpoints").path(1)) as found:
                for weight in expected.shapes:
                    torch.testing.assert_close(found.whole(WEIGHT, weight), expected.whole(WEIGHT, weight))
                    assert found.scalars[weight] == {"step": 1.0}
    assert [status for status, _ in outcomes] == [0, 0, 2, 2, 2, 0]
    messages = ("the weight ", "is damaged", "neither a consolidated")
    for (_, output), message in zip(outcomes[2:5], messages, strict=True):
        assert message in output
        assert "Traceback" not in output
    assert "resuming at step 1 of 3" in outcomes[5][1]
    assert f"--init-from {tmp_path / 'absent'} is not used" in outcomes[5][1]
    for source, (_, output) in zip((consolidated, training), outcomes):
        assert f"from the weights of {source} (step {STEPS}) alone" in " ".join(output.split())
    assert [path.name for path in later.parent.iterdir()] == [f".superseded-{later.name}"]
