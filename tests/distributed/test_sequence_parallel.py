"""Ranks that share sequences (Ulysses) against a plain single-process PyTorch loop."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from nar_scale.checkpoint import WEIGHT, CheckpointStore, PartitionReader, consolidate
from nar_scale.data import prepare

from . import jobs
from .test_equals_plain_loop import TOLERANCES, Weights, plain_loop

STAGES = (0, 1, 2, 3)
OBJECTIVES = {
    "autoregressive": ["objective.kind=autoregressive"],
    "non_autoregressive": [],
    "self_conditioning": ["objective.self_conditioning=true", "objective.no_replace_prob=0.15"],
    "self_token_critic": ["objective.self_token_critic=true", "objective.loss=unweighted"],
    "block_diffusion": ["objective.kind=block_diffusion", "objective.block_size=8"],
    "hybrid": ["objective.kind=hybrid", "objective.block_size=8"],
    "documents": ["data.document_field=documents.npy"],
}
# DeepSpeed knows nothing of shared sequences, so two stages are enough for what differs in the objective alone
CASES = [
    *((name, stage) for name in ("autoregressive", "non_autoregressive") for stage in STAGES),
    *(("self_conditioning", 0), ("self_token_critic", 1), ("self_token_critic", 3)),
    *(("block_diffusion", 1), ("block_diffusion", 3), ("hybrid", 3), ("documents", 2)),
]
# other ways through the net, at the stage with most at stake
FEATURES = {
    "autoregressive_options": [
        *("objective.kind=autoregressive", "objective.attention_z_loss=true", "objective.mask_prob=0.2"),
        *("model.positions=learned", "model.window=7"),
    ],
    "recomputed": [
        *("objective.kind=autoregressive", "data.document_field=documents.npy", "model.kv_heads=1"),
        *("model.activation_checkpointing=full", "training.zero_stage=3"),
    ],
    "recomputed_in_part": ["model.activation_checkpointing=selective", "model.qk_norm=true", "training.zero_stage=3"],
    "compiled": ["model.compile=true", "model.depth=1"],
    "block_across_ranks": ["objective.kind=block_diffusion", "objective.block_size=32"],
}
STEPS = "training.steps=3"
BF16 = ["training.precision=bf16"]
FOUR_HEADS = ["model.heads=4", "model.kv_heads=2"]
OF_FOUR = {
    "autoregressive_of_four": [*OBJECTIVES["autoregressive"], *FOUR_HEADS],
    "blocks_of_four": [*OBJECTIVES["block_diffusion"], *FOUR_HEADS],
}
EVALUATED = ["logging.evaluate_every=3", "logging.evaluation_samples=7", "logging.sample_every=3", "decoding.steps=4"]


class Launch:
    """Cases trained in one start of four ranks; those with documents in samples of several, some padded."""

    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        self.config = jobs.write_config(directory / "small.yaml", corpus)
        self.documents = jobs.write_config(directory / "documents.yaml", prepare_documents(directory))
        self.cases: list[tuple[Path, list[str]]] = []
        self._expected: dict[tuple[str, ...], tuple[list[float], Weights]] = {}

    def config_of(self, settings: Sequence[str]) -> Path:
        return self.documents if any("document_field" in setting for setting in settings) else self.config

    def add(self, name: str, peers: int, settings: Sequence[str], *overrides: str) -> None:
        own = [STEPS, f"training.sequence_parallel_size={peers}", f"training.run_directory={self.directory / name}"]
        self.cases.append((self.config_of(settings), [*settings, *overrides, *own]))

    def train(self) -> None:
        listing = self.directory / "cases.json"
        listing.write_text(json.dumps([[str(config), overrides] for config, overrides in self.cases]))
        script = Path(__file__).with_name("sequence_cases.py")
        jobs.run(jobs.forked_command(4, script, str(listing)))

    def check(self, name: str, settings: Sequence[str], precision: str = "fp32") -> None:
        key = tuple(setting for setting in settings if "zero_stage" not in setting and "compile" not in setting)
        if key not in self._expected:
            self._expected[key] = plain_loop(self.config_of(settings), [STEPS, *key])
        expected, weights = self._expected[key]
        of_losses, of_weights = TOLERANCES[precision]
        assert list(jobs.losses(self.directory / name).values()) == pytest.approx(expected, rel=of_losses)
        store = CheckpointStore(self.directory / name / "checkpoints")
        with PartitionReader(store.path(store.steps()[-1])) as trained:
            for weight_name, weight in weights.items():
                difference = trained.whole(WEIGHT, weight_name).float() - weight
                assert difference.norm() <= of_weights * weight.norm() + 1e-6, weight_name

    def seen(self, name: str) -> list[list[str]]:
        return json.loads((self.directory / name / "seen.json").read_text())

    def evaluation(self, name: str) -> dict[str, float]:
        lines = map(json.loads, (self.directory / name / "metrics.jsonl").read_text().splitlines())
        (found,) = (line for line in lines if "validation_nats_per_token" in line)
        return {name: value for name, value in found.items() if name.startswith("validation")}


def prepare_documents(directory: Path) -> Path:
    texts = ("naught beginning and end "[: 3 + number % 17] for number in range(200))
    (directory / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sizes = {"seq_len": jobs.SEQUENCE_LENGTH, "validation": 0.0, "samples_per_shard": 20, "unit_bytes": 400}
    prepare([directory / "texts.jsonl"], directory / "shards", document_ids=True, workers=1, progress=False, **sizes)
    return directory / "shards"


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    launch = Launch(tmp_path_factory.mktemp("shared"), corpus)
    for name, stage in CASES:
        launch.add(f"{name}-{stage}", 2, OBJECTIVES[name], f"training.zero_stage={stage}")
    for name, settings in FEATURES.items():
        launch.add(name, 2, settings)
    for name, settings in OF_FOUR.items():
        launch.add(name, 4, settings)
    for name, peers, stage in (("shared", 2, 3), ("whole", 1, 2)):
        launch.add(name, peers, OBJECTIVES["self_conditioning"], *EVALUATED, f"training.zero_stage={stage}")
    launch.add("bf16", 2, BF16)
    launch.train()
    return launch


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_two_groups_of_two_learn_what_one_rank_does(launch: Launch, name: str, stage: int) -> None:
    launch.check(f"{name}-{stage}", OBJECTIVES[name])


@pytest.mark.parametrize("name", FEATURES)
def test_features(launch: Launch, name: str) -> None:
    launch.check(name, FEATURES[name])


@pytest.mark.parametrize("name", OF_FOUR)
def test_one_group_of_four(launch: Launch, name: str) -> None:
    launch.check(name, OF_FOUR[name])
    zero, *others = launch.seen(name)
    assert zero
    assert others == 3 * [zero]


def test_bf16(launch: Launch) -> None:
    launch.check("bf16", BF16, "bf16")


@pytest.mark.parametrize("name", ["autoregressive-3", "non_autoregressive-3", "block_diffusion-3", "shared"])
def test_peers_see_the_same_masks(launch: Launch, name: str) -> None:
    zero, one, two, three = launch.seen(name)
    passes = 2 if name == "shared" else 1  # one more to condition on
    assert len(zero) == 3 * 2 * passes  # steps, micro-batches
    assert len(set(zero)) == len(zero) // passes
    assert zero == one
    assert two == three
    assert not set(zero) & set(two)


def test_evaluation_and_samples_are_those_of_whole_sequences(launch: Launch) -> None:
    launch.check("shared", OBJECTIVES["self_conditioning"])
    assert launch.evaluation("shared") == pytest.approx(launch.evaluation("whole"), rel=1e-4)
    for name in ("shared", "whole"):
        assert len(list((launch.directory / name / "samples").iterdir())) == 1


def test_a_checkpoint_is_as_without(launch: Launch, tmp_path: Path) -> None:
    assert consolidate(launch.directory / "self_token_critic-3", tmp_path / "exported") < 1e-5
