"""The moving average of the weights under every ZeRO stage, against one kept by hand; after a restart; and in use."""

import json
from pathlib import Path

import pytest
import torch

from nar_scale.checkpoint import EMA, CheckpointStore, PartitionReader, consolidate, load_consolidated
from nar_scale.commands.evaluate import main as evaluate
from nar_scale.commands.generate import main as generate
from nar_scale.config import load_config
from nar_scale.errors import CheckpointError
from nar_scale.objectives import build_wrapper
from nar_scale.training.optimizers.build import parameter_groups
from nar_scale.training.optimizers.learning_rate import learning_rate_factor

from . import jobs
from .whole_batches import whole_batches

DECAY, STEPS, STOP = 0.4, 6, 4  # the warm-up of the average ends within the run
ON, UNTIL_STOP = f"training.ema_decay={DECAY}", f"training.steps={STOP}"
STAGES = {f"zero-{stage}": [f"training.zero_stage={stage}"] for stage in range(4)}
TIED = ["training.zero_stage=3", "model.tie_embeddings=true", "deepspeed.zero_optimization.sub_group_size=2000"]
RESUMED = (2, 3)
BF16 = (0, 2)

Weights = dict[str, torch.Tensor]


def averages_by_hand(config_file: Path, overrides: list[str], start: int = 0) -> tuple[Weights, Weights]:
    """The weights after a plain loop, and their average from the step `start` on, by the definition."""
    config = load_config(config_file, overrides)
    torch.manual_seed(0)
    wrapper = build_wrapper(config, 257)
    weights = {name: weight.data for name, weight in wrapper.named_parameters()}
    averages: Weights = {}
    optimizer = torch.optim.AdamW(parameter_groups(wrapper, 0.1), lr=3e-3, betas=(0.9, 0.95))
    for step, batch in zip(range(STEPS), whole_batches(config)):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * learning_rate_factor(config.schedule, step, STEPS)
        if step == start:
            averages = {name: weight.clone() for name, weight in weights.items()}
        optimizer.zero_grad()
        wrapper.loss_terms(batch, seed=0).total().backward()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), 1.0)
        optimizer.step()
        stays = min(DECAY, (2 + step) / (11 + step))
        averages = {name: stays * average + (1 - stays) * weights[name] for name, average in averages.items()}
    return weights, averages


class Launch:
    """All runs, in one start of two ranks; some end early, and are resumed by running them again with more steps."""

    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        # of a rate that does not depend on how many steps are to come
        self.config = jobs.write_config(
            directory / "small.yaml", corpus, model={"depth": 1}, schedule={"kind": "constant"}
        )
        runs = [(name, [*settings, ON]) for name, settings in STAGES.items()]
        runs.append(("tied", [*TIED, ON]))
        runs += [(f"bf16-{stage}", [f"training.zero_stage={stage}", "training.precision=bf16", ON]) for stage in BF16]
        for stage in RESUMED:
            settings = [f"training.zero_stage={stage}", ON]
            runs += [(f"resumed-{stage}", [*settings, UNTIL_STOP]), (f"resumed-{stage}", settings)]
        runs += [("switched-on", [UNTIL_STOP]), ("switched-on", [ON])]
        runs += [("switched-off", [ON, UNTIL_STOP]), ("switched-off", [])]
        jobs.train_in_one_launch(
            directory,
            *((self.config, [*settings, f"training.run_directory={directory / name}"]) for name, settings in runs),
        )

    def export(self, name: str) -> Path:
        output = self.directory / f"exported-{name}"
        if not output.exists():
            consolidate(self.directory / name, output)
        return output

    def model(self, name: str) -> Weights:
        loaded = load_consolidated(self.export(name), weights="model")
        return {name: weight.data for name, weight in loaded.wrapper.named_parameters()}

    def average(self, name: str) -> Weights:
        loaded = load_consolidated(self.export(name), weights="ema")
        return {name: weight.data for name, weight in loaded.wrapper.named_parameters()}


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("ema"), corpus)


@pytest.fixture(scope="module")
def by_hand(launch: Launch) -> tuple[Weights, Weights]:
    return averages_by_hand(launch.config, [])


def check_close(found: Weights, expected: Weights, **tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


def distance(some: Weights, others: Weights) -> float:
    return max(float((some[name] - others[name]).abs().max()) for name in some)


def check_averages(launch: Launch, name: str, weights: Weights, averages: Weights) -> None:
    assert distance(weights, averages) > 1e-3  # which are told apart
    check_close(launch.average(name), averages, rtol=1e-3, atol=2e-5)
    check_close(launch.model(name), weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", STAGES)
def test_the_average_is_that_of_a_plain_loop(launch: Launch, name: str, by_hand: tuple[Weights, Weights]) -> None:
    check_averages(launch, name, *by_hand)


def test_with_tied_embeddings_and_several_sub_groups(launch: Launch) -> None:
    check_averages(launch, "tied", *averages_by_hand(launch.config, TIED))


@pytest.mark.parametrize("stage", BF16)
def test_of_bfloat16_weights_the_average_and_the_export_have_float32_precision(launch: Launch, stage: int) -> None:
    for weights in (launch.model(f"bf16-{stage}"), launch.average(f"bf16-{stage}")):
        weight = weights["net.attn_layers.blocks.0.attention.to_queries.weight"]
        assert bool((weight != weight.bfloat16().float()).any())


@pytest.mark.parametrize("stage", RESUMED)
def test_a_resumed_run_has_the_average_of_the_unbroken_one(launch: Launch, stage: int) -> None:
    assert CheckpointStore(launch.directory / f"resumed-{stage}" / "checkpoints").steps() == [STOP, STEPS]
    unbroken, resumed = launch.average(f"zero-{stage}"), launch.average(f"resumed-{stage}")
    check_close(resumed, unbroken, rtol=0, atol=0)


def test_switched_on_later_it_starts_from_the_weights_of_then(launch: Launch, by_hand: tuple[Weights, Weights]) -> None:
    weights, averages = averages_by_hand(launch.config, [], start=STOP)
    assert distance(averages, by_hand[1]) > 1e-4
    check_averages(launch, "switched-on", weights, averages)


def test_switched_off_it_is_gone(launch: Launch) -> None:
    store = CheckpointStore(launch.directory / "switched-off" / "checkpoints")
    for step, averaged in ((STOP, True), (STEPS, False)):
        with PartitionReader(store.path(step)) as reader:
            assert all((EMA in kinds) == averaged for kinds in reader.kinds.values())
    with pytest.raises(CheckpointError, match=r"exported-switched-off.*training\.ema_decay"):
        load_consolidated(launch.export("switched-off"), weights="ema")


def test_evaluate_and_generate_use_what_was_asked_for(
    launch: Launch, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported, samples = str(launch.export("zero-2")), str(tmp_path / "samples")
    results = {}
    for weights in ("model", "ema"):
        output = tmp_path / f"{weights}.json"
        data = ["--data", str(corpus), "--limit", "8", "--output", str(output)]
        assert evaluate(["--checkpoint", exported, *data, "--weights", weights]) == 0
        results[weights] = json.loads(output.read_text())
        assert results[weights]["weights"] == weights
    assert results["model"]["nats_per_token"] != results["ema"]["nats_per_token"]

    wanted = ["--checkpoint", exported, "--output", samples, "--num-samples", "1", "--steps", "2", "--device", "cpu"]
    assert generate([*wanted, "--weights", "ema"]) == 0
    assert json.loads(Path(samples, "generation.json").read_text())["weights"] == "ema"
    assert generate(wanted) == 2
    assert "holds results of another weights" in capsys.readouterr().err

    without = ["--checkpoint", str(launch.export("switched-off")), "--weights", "ema"]
    assert evaluate([*without, "--data", str(corpus), "--output", str(tmp_path / "none.json")]) == 2
    assert generate([*without, "--output", str(tmp_path / "none"), "--num-samples", "1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["evaluate", "generate"]
    assert all("had no training.ema_decay" in line for line in errors)
