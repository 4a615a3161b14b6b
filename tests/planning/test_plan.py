"""The plan of a run: what fits, what it is made of, and what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nar_scale.commands.plan import main as launch
from nar_scale.config import load_config
from nar_scale.errors import ConfigError, UserError
from nar_scale.objectives import build_wrapper
from nar_scale.planning.cost.devices import DEVICES, device_of, find_device
from nar_scale.planning.cost.partitions import ParameterSizes
from nar_scale.planning.cost.throughput import Ceilings
from nar_scale.planning.memory_estimate import GIBIBYTE
from nar_scale.planning.plan import SCALES, DoesNotFitError, PlannedRun, Terms, plan_run, plan_scales, plan_settings
from nar_scale.training.optimizers.build import parameter_groups
from tests.config.helpers import config_with
from tests.errors import assert_names

CONFIGS = Path(__file__).parents[2] / "configs"
H100 = DEVICES["h100"]
TERMS = Terms(H100, Ceilings.of(H100), per_node=8, network_bandwidth=H100.network_bandwidth, price=2.0)
ABSENT = "data.directory=/nowhere"


@pytest.fixture(scope="module")
def cluster():
    """The masked model of 1.4 billion parameters, its wrapper, and the plan for 64 H100."""
    config = load_config(CONFIGS / "1.4b_nar.yaml", [ABSENT])
    with torch.device("meta"):
        wrapper = build_wrapper(config, 50_303)
    return config, wrapper, plan_run(wrapper, config, TERMS, 64)


def test_the_micro_batch_is_the_largest_that_fits(cluster):
    config, wrapper, run = cluster
    share = 1024 // 64
    assert run.config.training.micro_batch_size * run.accumulation == share
    assert run.on_device <= TERMS.usable_memory < 2 * run.on_device
    less = replace(TERMS, device=replace(H100, memory=24e9))
    assert plan_run(wrapper, config, less, 64).config.training.micro_batch_size < run.config.training.micro_batch_size


def test_figures_belong_together(cluster):
    _, _, run = cluster
    step = run.step
    assert step.total == sum((step.matrices, step.attention, step.traffic, step.optimizer, step.exposed))
    assert run.tokens_per_second == pytest.approx(1024 * 2048 / step.total)
    assert 0 < step.exposed < step.communication
    assert 0.2 < run.mfu < 0.6
    lost = run.checkpoints.lost_fraction
    assert run.days == pytest.approx(100e9 / run.tokens_per_second / 86_400 / (1 - lost), rel=1e-3)
    assert run.price == pytest.approx(2.0 * 64 * 24 * run.days)
    assert run.nodes == 8
    # weights and moments in float32, and the moving average
    assert run.checkpoints.size == 16 * sum(weight.numel() for weight in cluster[1].parameters())


def test_speed_grows_with_devices_and_their_utilisation_falls(cluster):
    config, wrapper, _ = cluster
    scales = plan_scales(wrapper, config, TERMS)
    assert tuple(scales) == SCALES == tuple(2**power for power in range(15))
    runs = [run for run in scales.values() if isinstance(run, PlannedRun)]
    assert len(runs) == len(SCALES)
    speeds = [run.tokens_per_second for run in runs]
    assert speeds == sorted(speeds)
    assert runs[0].mfu > 1.5 * runs[-1].mfu
    assert runs[-1].config.training.global_batch_size == 16_384
    seen = [run.seconds * run.tokens_per_second for run in runs]  # the budget stays, but for the last step
    assert seen == pytest.approx([seen[0]] * len(seen), rel=1e-3)


def test_every_stage_is_planned_with_what_goes_together(cluster):
    config, wrapper, _ = cluster
    settings = list(plan_settings(wrapper, config, TERMS, 64))
    zero = [
        (each.training.zero_stage, each.zero.offload_optimizer, each.zero.offload_parameters) for each, _ in settings
    ]
    assert set(zero) == {
        *((stage, "none", "none") for stage in range(4)),
        *((stage, "cpu", "none") for stage in (1, 2, 3)),
        (3, "cpu", "cpu"),
    }
    assert len(settings) == 3 * len(set(zero))
    held = {key: run.on_device for key, (each, run) in zip(zero, settings) if run}
    assert held[3, "cpu", "none"] < held[3, "none", "none"]
    masters = load_config(CONFIGS / "1.4b_nar.yaml", [ABSENT, "training.master_weights=bf16"])
    assert {each.training.zero_stage for each, _ in plan_settings(wrapper, masters, TERMS, 64)} == {1, 2, 3}


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_groups_are_those_of_the_optimizer(kind):
    config = config_with(**{"optimizer.kind": kind})
    wrapper = build_wrapper(config, 50)
    sizes = ParameterSizes.of(wrapper, config.optimizer)
    assert sizes.total == sum(weight.numel() for weight in wrapper.parameters())
    if kind != "muon":  # whose own group is taken from the first
        groups = [[weight.numel() for _, weight in group["params"]] for group in parameter_groups(wrapper, 0.1)]
        assert [list(group) for group in sizes.groups] == groups


def test_devices_are_found_by_their_names():
    assert find_device("H100") is H100
    assert {name: device_of(f"NVIDIA {device.torch_name}") for name, device in DEVICES.items()} == DEVICES
    assert device_of("NVIDIA A100-SXM4-80GB") is DEVICES["a100"]
    assert device_of("Something else") is None
    with pytest.raises(UserError) as raised:
        find_device("h10")
    assert_names(str(raised.value), "'h10'", "h100", "a100")


def test_what_does_not_fit_or_divide_is_named(cluster):
    config, wrapper, _ = cluster
    tiny = replace(TERMS, device=replace(H100, memory=1e9))
    with pytest.raises(DoesNotFitError) as raised:
        plan_run(wrapper, config, tiny, 8)
    assert_names(str(raised.value), "training.zero_stage 2", "GiB", "8 h100")
    with pytest.raises(ConfigError) as refused:
        plan_run(wrapper, config, TERMS, 48)
    assert_names(str(refused.value), "1024", "48", "32", "64", "training.global_batch_size")


def plan(capsys, *arguments, status=0):
    """The plan that the script prints, or its error."""
    few = [] if any("model.depth" in argument for argument in arguments) else ["model.depth=2"]
    assert launch(["--config", str(CONFIGS / "1.4b_ar.yaml"), *arguments, *few, ABSENT]) == status
    told = capsys.readouterr()
    assert (told.err == "") == (status == 0)
    return told.err.removesuffix("\n") if status else told.out


def test_the_script_prints_and_writes(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    numbers, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    text = plan(capsys, "--devices", "16", "--price", "2", "--json", str(numbers), "--png", str(picture), "--settings")
    starts = [line.split(":")[0] for line in text.splitlines()[:5]]
    assert starts == ["model", "batch", "length", "data", "plan"]
    assert "# DeepSpeed configuration for 16 rank(s)" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(numbers.read_text())
    assert [row["devices"] for row in found["scales"]] == list(SCALES)
    run = found["run"]
    assert run["on_device"] == sum(part["size"] for part in run["memory"])
    assert f"{run['tokens_per_second']:,.0f} tokens/s" in text
    assert f"{run['price']:,.0f} at 2 a device-hour" in text
    assert f"{run['on_device'] / GIBIBYTE:.3f} GiB" in text
    assert {row["zero_stage"] for row in found["settings"]} == {0, 1, 2, 3}


def test_a_slower_network_and_other_devices_take_longer(capsys, tmp_path):
    def speed(*arguments):
        plan(capsys, "--devices", "64", "--json", str(tmp_path / "plan.json"), *arguments)
        return json.loads((tmp_path / "plan.json").read_text())["run"]["tokens_per_second"]

    usual = speed()
    assert speed("--interconnect", "10") < usual
    assert speed("--nodes", "64", "--interconnect", "100") < usual
    assert speed("--device", "a100") < 0.7 * usual


def test_measured_ceilings_take_the_place_of_the_data_sheet(capsys, tmp_path):
    def facts(product, device="NVIDIA H100 80GB HBM3"):
        values = {"device": device, "bf16 matrix product, sustained": product, "copy": 2.9, "copy to the host": 55.0}
        rows = [{"name": name, "value": value, "unit": ""} for name, value in values.items()]
        (tmp_path / "facts.json").write_text(json.dumps({"measurements": rows}))
        return ["--measured", str(tmp_path / "facts.json"), "--devices", "8"]

    fast, slow = plan(capsys, *facts(700.0)), plan(capsys, *facts(350.0))
    assert "700 TFLOP/s" in fast
    assert [line for line in fast.splitlines() if "matrix products" in line] != [
        line for line in slow.splitlines() if "matrix products" in line
    ]
    assert_names(plan(capsys, *facts(700.0, "NVIDIA A100"), status=2), "facts.json", "NVIDIA A100", "h100")
    (tmp_path / "facts.json").write_text("{}")
    assert_names(plan(capsys, "--devices", "8", "--measured", str(tmp_path / "facts.json"), status=2), "facts.json")
    assert_names(plan(capsys, "--devices", "8", "--measured", "/nowhere.json", status=2), "/nowhere.json")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--devices", "8", "--device", "tpu"], ["'tpu'", "h100"]),
        (["--devices", "8", "--nodes", "16"], ["--nodes 16", "--devices 8"]),
        (["--devices", "8", "--nodes", "3"], ["--nodes 3", "--devices 8"]),
        (["--devices", "7"], ["7 devices", "training.global_batch_size"]),
        (
            ["--devices", "1", "--device", "a10g", "model.depth=24"],
            ["training.zero_stage 2", "a10g", "GiB", "zero.offload_optimizer cpu"],
        ),
        (["--devices", "8", "--json", "/nowhere/plan.json"], ["/nowhere/plan.json"]),
        (["--devices", "8", "training.precision=fp7"], ["training.precision", "fp7"]),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, named, capsys):
    error = plan(capsys, *arguments, status=2)
    assert "\n" not in error
    assert_names(error, *named)


def test_what_fits_nowhere_says_so(capsys):
    large = ["model.dim=32768", "model.feedforward_dim=131072", "model.depth=200", "schedule.warmup_steps=0"]
    error = plan(capsys, "--devices", "1", "--device", "a10g", *large, status=2)
    assert_names(error, "a10g", "GiB", "nothing fits")


@pytest.mark.parametrize("value", ["0", "-1", "inf"])
def test_numbers_are_checked_first(value, capsys):
    with pytest.raises(SystemExit) as ended:
        launch(["--config", "x", "--devices", "8", "--price", value])
    assert ended.value.code == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "--price", value)
