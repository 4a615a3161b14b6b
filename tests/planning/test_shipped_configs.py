"""The YAML files of configs/: each has the size that it is named after, runs dry on the ranks it is for, and fits."""

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


@pytest.mark.parametrize("name", LARGE)
def test_a_large_model_has_the_size_of_its_name_and_fits_its_ranks(name):
    size = SIZES[name.split("_")[0]]
    config = load_config(CONFIGS[name], [ABSENT])
    check_run(config)
    assert config.training.run_directory == f"runs/{name}"
    assert config.objective.kind == {"ar": "autoregressive", "nar": "non_autoregressive"}[name.split("_")[1]]
    with torch.device("meta"):
        wrapper = build_wrapper(config, config.data.vocabulary_size)
    assert wrapper.net.num_tokens == 50_304  # a multiple of 128
    assert sum(weight.numel() for weight in wrapper.parameters()) == pytest.approx(size.parameters, rel=0.03)
    for ranks in size.ranks:
        text = describe_run(config, ranks)
        assert f"= {ranks} rank(s) x " in line(text, "batch:")
        assert on_device(text) < 70  # of 80 GB, that is 74.5 GiB, which the libraries share
        assert "number of epochs is not known" in line(text, "data:")
    network = H100.network_bandwidth
    run = plan_run(wrapper, config, Terms(H100, Ceilings.of(H100), per_node=8, network_bandwidth=network), 64)
    assert run.config.training.micro_batch_size * run.accumulation * 64 == config.training.global_batch_size
    assert 0.2 < run.mfu < 0.6


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_runs_dry_on_one_rank_and_two(name):
    config = load_config(CONFIGS[name], [ABSENT, "data.vocabulary_size=257"])
    check_run(config)
    for ranks in (1, 2):
        text = describe_run(config, ranks)
        assert f"= {ranks} rank(s) x " in line(text, "batch:")
        assert on_device(text) < 1


@pytest.mark.parametrize("size", SIZES)
def test_the_two_objectives_of_a_size_are_twins(size):
    ar, nar = (load_config(CONFIGS[f"{size}_{kind}"]).model_dump(exclude_defaults=True) for kind in ("ar", "nar"))
    keys = {(section, key) for twin in (nar, ar) for section in twin for key in twin[section]}
    differing = {
        f"{section}.{key}" for section, key in keys if nar.get(section, {}).get(key) != ar.get(section, {}).get(key)
    }
    assert differing <= TWINS
