"""All stages of benchmarks/gpu.sh, rehearsed once on CPUs by the command itself, and what they say."""

import math
import os
import subprocess
import sys

import pytest

from benchmarks.gpu import kit, report, run
from benchmarks.gpu.speed.breakdown import CATEGORIES
from benchmarks.gpu.stage import ROOT

from .wheels import write_wheel

TIMEOUT = 2400  # of a rehearsal that takes two minutes where nothing else runs
MFU_COUNTS = ("MFU", "MFU, FLOPs as nanochat", "MFU, FLOPs as PaLM", "MFU, computed FLOPs alone")
MODELS = ("1.4B NAR", "1.4B AR", "350M NAR ZeRO 0")
OBJECTIVES = ("AR", "NAR")
STAGES = [stage.name for stage in run.STAGES]

pytestmark = pytest.mark.timeout(TIMEOUT)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """The lines that the command ends with, and the results by stage."""
    directory = tmp_path_factory.mktemp("rehearsal")
    write_wheel(directory / "kit" / "wheels", "kit_probe")
    kit.gather_data(directory / "kit" / "data", documents=30)
    command = ["bash", "benchmarks/gpu.sh", "--rehearse", "--seconds", str(TIMEOUT - 400)]
    command += ["--kit", str(directory / "kit"), "--output", str(directory / "output")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    results = {result["stage"]: result for result in report.load(directory / "output", STAGES)}
    files = [path for path in (directory / "output").rglob("*") if path.is_file()]
    assert len(files) == len(STAGES) + 2  # a table and a log beside the results
    return done.stdout.strip().splitlines()[-report.MAX_LINES :], results


@pytest.fixture(scope="module")
def training(rehearsal):
    return rehearsal[1]["training"]


@pytest.fixture(scope="module")
def generation(rehearsal):
    return rehearsal[1]["generation"]


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_passes_and_says_where_it_was_measured(rehearsal, stage):
    result = rehearsal[1][stage]
    assert result["status"] == "passed"
    assert result["measurements"]
    assert result["rehearsal"] is True
    assert result["versions"]["torch"]
    assert {"date", "commit", "hardware", "command", "seconds"} <= result.keys()


def test_the_last_lines_are_a_short_table(rehearsal):
    last, results = rehearsal
    assert {each["name"] for each in results["facts"]["measurements"]} >= {"device", "bf16 matrix product", "copy"}
    assert [line for line in last if line.startswith("facts: bf16 matrix product: ")]


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
