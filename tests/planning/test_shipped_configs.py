"""The YAML files of configs/: each is built, has the size that it is named after, and fits the ranks that it is for."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nar_scale.config import check_run, load_config
from nar_scale.objectives import build_wrapper
from nar_scale.planning.cost.devices import DEVICES
from nar_scale.planning.cost.throughput import Ceilings
from nar_scale.planning.plan import Terms, plan_run
from nar_scale.planning.report import describe_run

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))}
H100 = DEVICES["h100"]
ABSENT = "data.directory=/nowhere"
TWINS = {
    "objective.kind",
    "decoding.sampler",
    "decoding.steps",
    "data.vocabulary_size",
    "optimizer.learning_rate",
    "training.ema_decay",
    "training.run_directory",
}


@dataclass(frozen=True)
class Size:
    """What the name of a configuration promises.

    Attributes:
        parameters: of the model.
        ranks: of 80 GB each, that its comments name.
    """

    parameters: float
    ranks: tuple[int, ...]


SIZES = {
    "125m": Size(125e6, (1, 2, 4, 8)),
    "350m": Size(350e6, (1, 2, 4, 8)),
    "1.4b": Size(1.4e9, (8, 16, 32, 64)),
    "7b": Size(7e9, (16, 32, 64, 128, 256)),
}
WRAPPERS = {
    "autoregressive": "AutoregressiveWrapper",
    "non_autoregressive": "NonAutoregressiveWrapper",
    "hybrid": "HybridWrapper",
}
LARGE = [f"{size}_{kind}" for size in SIZES for kind in ("ar", "nar")]
SMALL = ["digits_nar", "quickstart_ar", "quickstart_hybrid", "quickstart_nar"]


def line(text, start):
    """The line of the summary before the configurations."""
    return next(line for line in text.split("\n# resolved", 1)[0].splitlines() if line.startswith(start))


def on_device(text):
    """The estimate of memory, in GiB."""
    return float(line(text, "  on the device").split()[-2])


def test_every_configuration_is_among_those_tested():
    assert sorted([*LARGE, *SMALL]) == sorted(CONFIGS)


def loaded(name):
    """A configuration, without the data that it is for."""
    vocabulary = ["data.vocabulary_size=257"] if name in SMALL else []
    return load_config(CONFIGS[name], [ABSENT, *vocabulary])


def built(config):
    """The wrapper on a device that has shapes alone."""
    with torch.device("meta"):
        return build_wrapper(config, config.data.vocabulary_size)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_validated_runs_dry_and_is_planned(name):
    config = loaded(name)
    check_run(config)
    ranks_of, limit = (SIZES[name.split("_")[0]].ranks, 70) if name in LARGE else ((1, 2), 1)
    for ranks in ranks_of:
        text = describe_run(config, ranks)
        assert f"= {ranks} rank(s) x " in line(text, "batch:")
        assert 0 < on_device(text) < limit  # GiB, of 80 GB, that is 74.5 GiB, which the libraries share
        assert "number of epochs is not known" in line(text, "data:")
    terms = Terms(H100, Ceilings.of(H100), per_node=8, network_bandwidth=H100.network_bandwidth)
    run = plan_run(built(config), config, terms, ranks_of[-1])
    assert run.config.training.micro_batch_size * run.accumulation * ranks_of[-1] == config.training.global_batch_size
    assert 0 < run.on_device < terms.usable_memory


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_built_where_there_are_shapes_alone(name):
    config = loaded(name)
    wrapper = built(config)
    assert type(wrapper).__name__ == WRAPPERS[config.objective.kind]
    assert {tensor.device.type for tensor in (*wrapper.parameters(), *wrapper.buffers())} == {"meta"}
    embedding = wrapper.net.token_emb.weight
    assert embedding.shape == (config.data.vocabulary_size + (wrapper.mask_id is not None), config.model.dim)
    assert len(wrapper.net.attn_layers.blocks) == config.model.depth


@pytest.mark.parametrize("name", LARGE)
def test_a_large_model_has_the_size_of_its_name(name):
    size = SIZES[name.split("_")[0]]
    config = loaded(name)
    assert config.training.run_directory == f"runs/{name}"
    assert config.objective.kind == {"ar": "autoregressive", "nar": "non_autoregressive"}[name.split("_")[1]]
    wrapper = built(config)
    assert wrapper.net.num_tokens == 50_304  # a multiple of 128
    assert sum(weight.numel() for weight in wrapper.parameters()) == pytest.approx(size.parameters, rel=0.03)
    terms = Terms(H100, Ceilings.of(H100), per_node=8, network_bandwidth=H100.network_bandwidth)
    assert 0.2 < plan_run(wrapper, config, terms, 64).mfu < 0.6


@pytest.mark.parametrize("size", SIZES)
def test_the_two_objectives_of_a_size_are_twins(size):
    ar, nar = (load_config(CONFIGS[f"{size}_{kind}"]).model_dump(exclude_defaults=True) for kind in ("ar", "nar"))
    keys = {(section, key) for twin in (nar, ar) for section in twin for key in twin[section]}
    differing = {
        f"{section}.{key}" for section, key in keys if nar.get(section, {}).get(key) != ar.get(section, {}).get(key)
    }
    assert differing <= TWINS
