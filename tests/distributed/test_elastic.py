"""A run goes on with another number of ranks and another ZeRO stage as if nothing had changed."""

import json
from pathlib import Path

import pytest

from nar_scale.checkpoint import WEIGHT, CheckpointStore, PartitionReader, TrainingState

from . import jobs

STEPS = 10
# ranks, ZeRO stage, the last step of the launch
LEGS = ((1, 0, 3), (2, 3, 5), (4, 1, 7), (1, 2, STEPS))
KINDS = {
    "non_autoregressive": ["objective.self_conditioning=true", "objective.self_token_critic=true"],
    "autoregressive": ["objective.kind=autoregressive", "model.tie_embeddings=true", "training.ema_decay=0.9"],
    "bf16": ["training.precision=bf16"],
}


def overrides(directory: Path, name: str, stage: int) -> list[str]:
    settings = [f"training.zero_stage={stage}", f"training.run_directory={directory / name}"]
    return [*KINDS[name.split("-")[0]], *settings]


class Runs:
    """The same runs unbroken on one rank, and in legs of different shapes."""

    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        settings = {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2}
        self.config = jobs.write_config(directory / "elastic.yaml", corpus, training=settings)
        self.until = {
            stop: jobs.write_config(
                directory / f"until-{stop}.yaml", corpus, training=settings, checkpoint={"every": stop, "keep_last": 9}
            )
            for _, _, stop in LEGS
        }
        unbroken = [(self.config, overrides(directory, f"{kind}-unbroken", 0)) for kind in KINDS]
        jobs.train_in_one_launch(directory, *unbroken, ranks=1)
        for ranks, stage, stop in LEGS:
            cases = [
                (self.until[stop], [*overrides(directory, f"{kind}-elastic", stage), f"stop_after={stop}"])
                for kind in KINDS
            ]
            jobs.train_in_one_launch(directory, *cases, ranks=ranks)

    def losses(self, name: str) -> list[float]:
        return list(jobs.losses(self.directory / name).values())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("elastic"), corpus)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("non_autoregressive", 2e-5), ("autoregressive", 2e-5), ("bf16", 2e-3)]
)
def test_the_loss_curve_is_the_unbroken_one(runs: Runs, kind: str, tolerance: float) -> None:
    assert runs.losses(f"{kind}-elastic") == pytest.approx(runs.losses(f"{kind}-unbroken"), rel=tolerance)
    assert len(runs.losses(f"{kind}-elastic")) == STEPS


@pytest.mark.parametrize("kind", ["non_autoregressive", "autoregressive"])
def test_weights_and_optimizer_are_the_unbroken_ones(runs: Runs, kind: str) -> None:
    here, there = (
        PartitionReader(CheckpointStore(runs.directory / f"{kind}-{way}" / "checkpoints").path(STEPS))
        for way in ("elastic", "unbroken")
    )
    with here, there:
        assert here.shapes == there.shapes
        assert here.kinds == there.kinds
        assert {"exp_avg", "exp_avg_sq", WEIGHT} <= here.kinds["net.token_emb.weight"]
        assert ("ema" in here.kinds["net.token_emb.weight"]) == (kind == "autoregressive")
        for name, kinds in here.kinds.items():
            assert here.scalars[name] == there.scalars[name] == {"step": float(STEPS)}
            for each in kinds:
                ours, theirs = here.whole(each, name), there.whole(each, name)
                assert ours.sub(theirs).norm() <= 1e-3 * theirs.norm() + 1e-7, (name, each)


def test_samples_go_on_where_they_were(runs: Runs) -> None:
    store = CheckpointStore(runs.directory / "non_autoregressive-elastic" / "checkpoints")
    for ranks, stage, stop in LEGS:
        state = TrainingState.load(store.path(stop))
        assert (state.step, state.samples, state.world_size, state.zero_stage) == (stop, 8 * stop, ranks, stage)
        files = json.loads((store.path(stop) / "manifest.json").read_text())
        assert len([name for name in files if name.startswith("partitions/")]) == ranks
