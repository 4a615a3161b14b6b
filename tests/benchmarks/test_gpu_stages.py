"""The stages of training and generation speed, rehearsed on a CPU as `benchmarks/gpu.sh --rehearse` does."""

import json
import math
import subprocess
import sys

import pytest

from benchmarks.gpu.speed.breakdown import CATEGORIES
from benchmarks.gpu.stage import ROOT

TIMEOUT = 1800  # of a rehearsal that takes half a minute where nothing else runs
MFU_COUNTS = ("MFU", "MFU, FLOPs as nanochat", "MFU, FLOPs as PaLM", "MFU, computed FLOPs alone")
MODELS = ("1.4B NAR", "1.4B AR", "350M NAR ZeRO 0")
OBJECTIVES = ("AR", "NAR")


def rehearse(module, directory):
    output = directory / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.gpu.{module}", "--output", str(output), "--rehearse"]
    run = subprocess.run([*command, "--seconds", str(2 * TIMEOUT)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return rehearse("training_speed", tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def generation(tmp_path_factory):
    return rehearse("generation_speed", tmp_path_factory.mktemp("generation"))


def named(result):
    measurements = {measurement["name"]: measurement for measurement in result["measurements"]}
    assert len(measurements) == len(result["measurements"])
    assert all(math.isfinite(each["value"]) and isinstance(each["unit"], str) for each in measurements.values())
    assert sum(each.get("headline", False) for each in measurements.values()) <= 10
    for each in measurements.values():
        assert ("goal" in each) == ("reached" in each)
        assert each.get("reached", False) == (each["value"] >= each.get("goal", math.inf))
    return measurements


def assert_positive(measurements, names):
    assert {name: measurements[name]["value"] for name in names if not measurements[name]["value"] > 0} == {}


@pytest.mark.timeout(TIMEOUT)
def test_training_is_measured_through_the_trainer(training):
    measurements = named(training)
    kinds = ("training", "memory", "share of the ceiling", *MFU_COUNTS)
    assert_positive(measurements, [f"{model} {kind}" for model in MODELS for kind in kinds])
    assert {measurements[f"1.4B {objective} MFU"]["goal"] for objective in OBJECTIVES} == {60.0}
    ours, nanochat, palm, computed = (measurements[f"1.4B AR {count}"]["flops_per_token"] for count in MFU_COUNTS)
    assert computed < nanochat < ours < palm
    part = measurements["1.4B NAR training"]["predicted_part"]
    assert 0.2 < part < 0.8  # of a linear schedule
    assert measurements["1.4B AR training"]["predicted_part"] == pytest.approx(63 / 64)
    assert "left out" not in " ".join(training["notes"])
    assert sum("micro-batches of 2 give" in note for note in training["notes"]) == 2


@pytest.mark.timeout(TIMEOUT)
def test_the_time_of_a_step_is_shared_out(training):
    measurements = named(training)
    parts = {name: measurements[f"1.4B NAR step: {name}"] for name in CATEGORIES}
    assert_positive(measurements, [f"1.4B NAR step: {name}" for name in CATEGORIES[:-1]])
    total = sum(part["value"] for part in parts.values())
    assert 99.9 < total < 130  # threads of gloo work beside the main one
    assert sum(part["milliseconds"] for part in parts.values()) == pytest.approx(
        total / 100 * measurements["1.4B NAR step, traced"]["value"]
    )
    assert len(measurements["1.4B NAR step, traced"]["longest"]) > 10


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_is_compared_with_the_same_model_in_x_transformers(training, objective):
    measurements = named(training)
    contenders = ("ours, compiled", "ours, eager", "theirs, eager", "theirs, compiled")
    assert_positive(measurements, [f"125M {objective} plain loop: {contender}" for contender in contenders])
    eager, compiled = (
        measurements[f"125M {objective} training over x-transformers {how}"] for how in ("eager", "compiled")
    )
    assert (eager["goal"], compiled["goal"]) == (2.0, 1.2)
    assert eager["value"] > 0
    assert compiled["value"] > 0
    agreement = measurements[f"125M {objective} difference to x-transformers in float32"]
    assert agreement["value"] < 1e-4
    losses = agreement["first_losses_in_bf16"]
    assert len(losses) == 3
    assert losses["ours, compiled"] == pytest.approx(losses["ours, eager"], abs=0.02 if objective == "AR" else 0.5)
    assert losses["ours, eager"] == pytest.approx(losses["theirs, eager"], abs=0.02 if objective == "AR" else 0.5)


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("vocabulary", [256, 512])
def test_generation_is_compared_with_the_same_model_in_x_transformers(generation, objective, vocabulary):
    measurements = named(generation)
    model = f"{objective} generation, vocabulary {vocabulary}"
    assert measurements[f"{model}: difference to x-transformers in float32"]["value"] < 1e-4
    for prefix in (f"{model}, batch {batch}" for batch in (1, 16)):
        assert_positive(measurements, [f"{prefix}: {name}" for name in ("ours", "theirs", "ours, compiled")])
        for ratio in (measurements[f"{prefix}, over x-transformers{how}"] for how in ("", ", compiled")):
            assert ratio["value"] > 0
            assert ratio["goal"] == 4.0
