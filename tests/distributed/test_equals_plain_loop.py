"""ZeRO 0 to 3 on two ranks, with and without accumulation, against a plain single-process PyTorch loop."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from nar_scale.checkpoint import consolidate, load_exported
from nar_scale.config import load_config
from nar_scale.objectives import build_wrapper
from nar_scale.training.optimizer import learning_rate_factor, parameter_groups

from . import jobs
from .whole_batches import whole_batches

KINDS = ("non_autoregressive", "autoregressive")
STAGES = (0, 1, 2, 3)
# two ranks, eight sequences a step: micro-batches of four and of two
MICRO_BATCH_SIZES = {1: 4, 2: 2}
CASES = list(itertools.product(KINDS, STAGES, MICRO_BATCH_SIZES))

# what else differs by ZeRO stage: weights outside the net, shared weights, weights used twice or in the backward pass
FEATURES = {
    "self_conditioning": ["objective.self_conditioning=true", "objective.no_replace_prob=0.15"],
    "self_token_critic": ["objective.self_token_critic=true"],
    "tied": ["model.tie_embeddings=true", "model.kv_heads=1", "model.qk_norm=true"],
    "recomputed": ["model.activation_checkpointing=full", "objective.kind=autoregressive"],
    "recomputed_in_part": ["model.activation_checkpointing=selective", "model.window=7"],
    "compiled": ["model.compile=true", "model.depth=1"],
    "chunked": ["model.logits_chunk_size=2000", "objective.self_token_critic=true"],
    "maskgit": ["objective.loss=maskgit", "objective.schedule=cosine", "objective.masking=bernoulli"],
    "block_diffusion": ["objective.kind=block_diffusion", "objective.block_size=8"],
}
WATCHED = (2, 3)  # stages at which the features are also evaluated and sampled while training


def plain_loop(config_file: Path, overrides: list[str]) -> tuple[list[float], torch.nn.Module]:
    """What the trainer must compute, written as anybody would on one device with the whole batch."""
    config = load_config(config_file, overrides)
    training = config.training
    torch.manual_seed(training.seed)
    wrapper = build_wrapper(config, 257)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(wrapper, settings.weight_decay), lr=settings.learning_rate, betas=settings.betas
    )
    losses = []
    for step, batch in zip(range(training.steps), whole_batches(config)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(config.schedule, step, training.steps)
        loss = wrapper(batch, seed=training.seed).total()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), settings.gradient_clipping)
        optimizer.step()
        losses.append(loss.item())
    return losses, wrapper


class Launch:
    """All cases, trained in one start of two ranks."""

    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        self.config = jobs.write_config(directory / "small.yaml", corpus)
        cases = {self.name(*case): self.overrides(*case) for case in CASES}
        for feature, settings in FEATURES.items():
            for stage in STAGES:
                watched = self.watched() if stage in WATCHED else []
                cases[f"{feature}-{stage}"] = [*settings, f"training.zero_stage={stage}", *watched]
        for kind, stage in itertools.product(KINDS, STAGES):
            cases[f"bf16-{kind}-{stage}"] = [*self.overrides(kind, stage, 2), "training.precision=bf16"]
        self.cases = {
            name: [*settings, f"training.run_directory={directory / name}"] for name, settings in cases.items()
        }
        jobs.train_in_one_launch(directory, *((self.config, overrides) for overrides in self.cases.values()))

    @staticmethod
    def name(kind: str, stage: int, accumulation: int) -> str:
        return f"{kind}-{stage}-{accumulation}"

    @staticmethod
    def overrides(kind: str, stage: int, accumulation: int) -> list[str]:
        size = MICRO_BATCH_SIZES[accumulation]
        return [f"objective.kind={kind}", f"training.zero_stage={stage}", f"training.micro_batch_size={size}"]

    @staticmethod
    def watched() -> list[str]:
        """Evaluate on a number of sequences that does not divide, and sample, while training."""
        return ["logging.evaluate_every=3", "logging.evaluation_samples=7", "logging.sample_every=3"]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("cases"), corpus)


def check_equal(launch: Launch, name: str, tmp_path: Path) -> None:
    expected, wrapper = plain_loop(launch.config, launch.cases[name])
    assert list(jobs.losses(launch.directory / name).values()) == pytest.approx(expected, rel=2e-5)
    assert expected[-1] < expected[0]
    logits_difference = consolidate(launch.directory / name, tmp_path / "exported")
    assert logits_difference < 1e-5
    trained = dict(load_exported(tmp_path / "exported").wrapper.named_parameters())
    for parameter_name, parameter in wrapper.named_parameters():
        torch.testing.assert_close(trained[parameter_name], parameter, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "stage", "accumulation"), CASES)
def test_losses_and_weights(launch: Launch, kind: str, stage: int, accumulation: int, tmp_path: Path) -> None:
    check_equal(launch, launch.name(kind, stage, accumulation), tmp_path)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("feature", FEATURES)
def test_features(launch: Launch, feature: str, stage: int, tmp_path: Path) -> None:
    name = f"{feature}-{stage}"
    check_equal(launch, name, tmp_path)
    if stage in WATCHED:
        assert len(list((launch.directory / name / "samples").iterdir())) == 2


@pytest.mark.parametrize(("kind", "stage"), list(itertools.product(KINDS, STAGES)))
def test_bf16(launch: Launch, kind: str, stage: int, tmp_path: Path) -> None:
    name = f"bf16-{kind}-{stage}"
    expected, _ = plain_loop(launch.config, launch.cases[name])
    assert list(jobs.losses(launch.directory / name).values()) == pytest.approx(expected, rel=2e-3)
    assert consolidate(launch.directory / name, tmp_path / "exported") < 1e-3


def test_evaluation_does_not_depend_on_the_stage(launch: Launch) -> None:
    def last_evaluation(name: str) -> dict[str, float]:
        lines = (launch.directory / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if "validation_nats_per_token" in line][-1]

    for feature in FEATURES:
        two, three = last_evaluation(f"{feature}-2"), last_evaluation(f"{feature}-3")
        # a standard error is what is left when large sums cancel
        assert three.pop("validation_standard_error") == pytest.approx(two.pop("validation_standard_error"), rel=1e-3)
        assert three == pytest.approx(two, rel=1e-4)
