"""The moving average of the weights under every ZeRO stage, against one kept by hand; and after a restart."""

from pathlib import Path

import pytest
import torch

from nar_scale.checkpoint import consolidate, load_exported
from nar_scale.config import load_config
from nar_scale.data import DatasetIndex, TokenStream
from nar_scale.errors import CheckpointError
from nar_scale.objectives import build_wrapper
from nar_scale.training.optimizer import learning_rate_factor, parameter_groups

from . import jobs

DECAY, STEPS = 0.4, 6
CASES = {
    **{f"fp32-{stage}": [f"training.zero_stage={stage}"] for stage in range(4)},
    "tied-3": ["training.zero_stage=3", "model.tie_embeddings=true"],
}


def averages_by_hand(config_file: Path, overrides: list[str]) -> tuple[dict, dict]:
    """The weights after a plain loop and their average, from the definition."""
    config = load_config(config_file, overrides)
    index = DatasetIndex.open(config.data.directory, config.data.train, progress=False)
    stream = TokenStream(
        index,
        sequence_length=config.model.max_seq_len,
        vocabulary_size=257,
        seed=0,
        global_batch_size=8,
        micro_batch_size=8,
        rank=0,
        world_size=1,
        window_shards=config.data.shuffle_window,
        workers=0,
    )
    torch.manual_seed(0)
    wrapper = build_wrapper(config, 257)
    optimizer = torch.optim.AdamW(parameter_groups(wrapper, 0.1), lr=3e-3, betas=(0.9, 0.95))
    averages = {name: weight.detach().clone() for name, weight in wrapper.named_parameters()}
    for step, batch in zip(range(STEPS), stream):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * learning_rate_factor(config.schedule, step, STEPS)
        optimizer.zero_grad()
        wrapper(batch, seed=0).total().backward()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), 1.0)
        optimizer.step()
        stays = min(DECAY, (2 + step) / (11 + step))
        for name, weight in wrapper.named_parameters():
            averages[name] = stays * averages[name] + (1 - stays) * weight.detach()
    return dict(wrapper.named_parameters()), averages


class Launch:
    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        self.config = jobs.write_config(directory / "small.yaml", corpus)
        on = f"training.ema_decay={DECAY}"
        self.cases = {name: [*settings, on] for name, settings in CASES.items()}
        for stage in (0, 2):
            self.cases[f"bf16-{stage}"] = [f"training.zero_stage={stage}", "training.precision=bf16", on]
        self.cases["unbroken"] = [on, "training.zero_stage=2"]
        runs = [(name, settings) for name, settings in self.cases.items()]
        short = ["training.zero_stage=2", "checkpoint.every=3"]
        # the schedule of the rate must know the whole length, so a run is stopped by leaving checkpoints of step 3
        runs += [("resumed", [on, *short]), ("switched_on", short), ("never", short)]
        jobs.train_in_one_launch(
            directory,
            *((self.config, [*settings, f"training.run_directory={directory / name}"]) for name, settings in runs),
        )
        for name in ("resumed", "switched_on"):
            self.forget_after(name, 3)
        resumed = [("resumed", [on, *short]), ("switched_on", [on, *short])]
        jobs.train_in_one_launch(
            directory,
            *((self.config, [*settings, f"training.run_directory={directory / name}"]) for name, settings in resumed),
        )

    def forget_after(self, name: str, step: int) -> None:
        checkpoints = self.directory / name / "checkpoints"
        for path in checkpoints.glob("step-*"):
            if int(path.name.removeprefix("step-")) > step:
                path.rename(self.directory / f"{name}-{path.name}")

    def export(self, name: str) -> Path:
        output = self.directory / f"exported-{name}"
        if not output.exists():
            consolidate(self.directory / name, output)
        return output

    def weights(self, name: str, kind: str) -> dict[str, torch.Tensor]:
        return dict(load_exported(self.export(name), weights=kind).wrapper.named_parameters())


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("ema"), corpus)


@pytest.mark.parametrize("name", CASES)
def test_the_average_is_that_of_a_plain_loop(launch: Launch, name: str) -> None:
    weights, averages = averages_by_hand(launch.config, launch.cases[name])
    ours = launch.weights(name, "ema")
    assert set(ours) == set(averages)
    for weight_name, average in averages.items():
        torch.testing.assert_close(ours[weight_name].data, average, rtol=1e-3, atol=1e-5)
    raw = launch.weights(name, "model")
    apart = max(float((raw[name] - ours[name]).detach().abs().max()) for name in ours)
    assert apart > 2e-4
    torch.testing.assert_close(raw["net.token_emb.weight"], weights["net.token_emb.weight"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 2])
def test_of_bfloat16_weights_the_average_and_the_export_have_float32_precision(launch: Launch, stage: int) -> None:
    for kind in ("model", "ema"):
        weight = launch.weights(f"bf16-{stage}", kind)["net.attn_layers.blocks.0.attention.to_queries.weight"]
        assert bool((weight != weight.bfloat16().float()).any())


def test_a_resumed_run_has_the_average_of_the_unbroken_one(launch: Launch) -> None:
    unbroken, resumed = launch.weights("unbroken", "ema"), launch.weights("resumed", "ema")
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_switched_on_later_it_starts_from_the_weights_of_then(launch: Launch) -> None:
    later, raw = launch.weights("switched_on", "ema"), launch.weights("switched_on", "model")
    unbroken = launch.weights("unbroken", "ema")
    name = "net.token_emb.weight"
    assert torch.equal(raw[name], launch.weights("unbroken", "model")[name])
    assert (later[name] - raw[name]).abs().max() > 0
    assert (later[name] - unbroken[name]).abs().max() > 0


def test_without_it_there_is_nothing_to_load(launch: Launch) -> None:
    with pytest.raises(CheckpointError, match=r"no moving average.*training\.ema_decay"):
        load_exported(launch.export("never"), weights="ema")
