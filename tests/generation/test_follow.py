"""Workers that take up newer checkpoints of a run, and those that do not."""

import json
import shutil

import pytest
import torch

from nar_scale.checkpoint import ModelInfo, load_consolidated, run_probe
from nar_scale.checkpoint.consolidated import write_consolidated
from nar_scale.errors import UserError
from nar_scale.generation import SamplingOptions, generate, generate_directly, samples_from_scratch
from nar_scale.generation.model_choice import FollowedModel
from tests.errors import refused
from tests.generation.helpers import export

OPTIONS = SamplingOptions(seed=2)


@pytest.fixture
def run(tmp_path):
    """The consolidated checkpoints of a run: one so far."""
    (tmp_path / "consolidated").mkdir()
    export(tmp_path / "consolidated" / "step-000000001", "non_autoregressive")
    return tmp_path / "consolidated"


def publish(run):
    """Publish a second checkpoint: the first with other values of the weights."""
    model = load_consolidated(run / "step-000000001")
    with torch.no_grad():
        for weight in model.wrapper.parameters():
            weight.mul_(-1.5)
    info = ModelInfo(model.info.vocabulary_size, "byte", 2, 2, "fp32", model.info.decode)
    write_consolidated(run / "step-000000002", model.wrapper, model.config, info, run_probe(model.wrapper))


def follow(run, output, stop=lambda: False, **arguments):
    requests = samples_from_scratch(8)
    return generate(run, output, requests, OPTIONS, part_size=2, follow=True, stop=stop, progress=False, **arguments)


def test_each_result_names_the_checkpoint_that_made_it(run, tmp_path):
    looks = []

    def stop():
        looks.append(None)
        if len(looks) == 3:
            publish(run)
        return False

    parts = follow(run, tmp_path / "out", stop)
    results = {}
    for part in parts:
        results |= {result["number"]: result for result in map(json.loads, part.read_bytes().splitlines())}
    made_by = [results[number].pop("checkpoint") for number in range(8)]
    assert set(made_by) == {"step-000000001", "step-000000002"}
    requests = samples_from_scratch(8)
    alone = {name: list(generate_directly(run / name, requests, OPTIONS)) for name in set(made_by)}
    assert alone["step-000000001"] != alone["step-000000002"]
    assert [results[number] for number in range(8)] == [alone[name][number] for number, name in enumerate(made_by)]


def test_without_the_option_another_checkpoint_is_refused(run, tmp_path):
    publish(run)
    requests = samples_from_scratch(2)
    generate(run / "step-000000001", tmp_path / "out", requests, OPTIONS, progress=False)
    with refused(UserError, tmp_path / "out", "checkpoint"):
        generate(run / "step-000000002", tmp_path / "out", requests, OPTIONS, progress=False)
    with refused(UserError, tmp_path / "out", "checkpoint"):
        generate(run, tmp_path / "out", requests, OPTIONS, progress=False, follow=True)


def test_a_checkpoint_that_cannot_be_used_is_left_out(run, tmp_path):
    model = FollowedModel(run, "model", torch.device("cpu"))
    assert model.current() is model.current()
    publish(run)
    (weights,) = (run / "step-000000002").glob("model*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert model.current().info.step == 1
    export(run / "step-000000003", "non_autoregressive", model={"dim": 32})
    assert model.current().info.step == 1
    assert model.name == "step-000000001"
    shutil.rmtree(run / "step-000000003")
    shutil.rmtree(run / "step-000000002")
    publish(run)
    assert model.current().info.step == 1  # it was damaged once


def test_a_run_without_checkpoints_is_named(tmp_path):
    (tmp_path / "consolidated").mkdir()
    with refused(UserError, tmp_path / "consolidated"):
        follow(tmp_path / "consolidated", tmp_path / "out")
