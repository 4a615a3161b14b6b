"""Workers on models that are conditional on a class, and on models without text."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nar_scale.checkpoint import load_consolidated
from nar_scale.errors import UserError
from nar_scale.evaluation import image_grid
from nar_scale.generation import SamplingOptions, generate, read_requests, samples_from_scratch
from nar_scale.generation.encoding import assign_class
from nar_scale.masking import Noise
from tests.errors import assert_names, refused
from tests.generation.helpers import export

CLASSES, LEVELS, SHAPE = 3, 5, (4, 6)
CONDITIONAL = {
    "objective": {"num_classes": CLASSES},
    "data": {"class_field": "cls"},
    "decoding": {"sampler": "confidence", "guidance": 2.0},
    "logging": {"image_shape": SHAPE},
}


def export_with(directory, kind="non_autoregressive", **sections):
    return export(directory, kind, vocabulary_size=LEVELS, tokenizer=None, **sections)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return export_with(tmp_path_factory.mktemp("exported") / "conditional", **CONDITIONAL)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return export_with(tmp_path_factory.mktemp("exported") / "unconditional")


def run(checkpoint, output, requests, **options):
    paths = generate(checkpoint, output, requests, SamplingOptions(seed=3, **options), part_size=4, progress=False)
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return read_requests(path)


def test_samples_from_scratch_take_the_classes_in_turn(conditional, tmp_path):
    samples = run(conditional, tmp_path, samples_from_scratch(7))
    assert [sample["class"] for sample in samples] == [0, 1, 2, 0, 1, 2, 0]
    assert all("generated" not in sample and len(sample["tokens"]) == 24 for sample in samples)


def test_a_class_is_what_the_model_is_asked_for(conditional, tmp_path):
    asked = [2, 0, 2, 1]
    requests = lines(tmp_path / "p.jsonl", *({"class": number} for number in asked))
    wrapper = load_consolidated(conditional).wrapper
    for guidance, scale in ((None, 2.0), (1.0, 1.0), (0.0, 0.0)):
        samples = run(conditional, tmp_path / str(guidance), requests, guidance=guidance)
        noise = Noise.of_requests(3, torch.arange(4))
        tokens = wrapper.generate(4, 1.0, 0.0, steps=4, classes=torch.tensor(asked), guidance_scale=scale, noise=noise)
        assert [sample["tokens"] for sample in samples] == tokens.tolist()
        assert [sample["class"] for sample in samples] == asked


def test_each_part_is_drawn(conditional, tmp_path):
    samples = run(conditional, tmp_path, samples_from_scratch(6))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["part-00000.png", "part-00001.png"]
    for part, share in enumerate((samples[:4], samples[4:])):
        expected = image_grid(np.array([sample["tokens"] for sample in share]), SHAPE, LEVELS)
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"part-{part:05d}.png")), expected)


def test_sequences_that_are_no_whole_image_are_not_drawn(conditional, tmp_path):
    assert len(run(conditional, tmp_path, samples_from_scratch(2), length=20)[0]["tokens"]) == 20
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize("kind", ["autoregressive", "non_autoregressive"])
def test_models_without_a_tokenizer_give_tokens(tmp_path, kind):
    export_with(tmp_path / "model", kind)
    samples = run(tmp_path / "model", tmp_path / "out", samples_from_scratch(3))
    assert [set(sample) for sample in samples] == [{"number", "tokens", "network_calls"}] * 3
    assert list((tmp_path / "out").glob("*.png")) == []
    with refused(UserError, "data.tokenizer"):
        run(tmp_path / "model", tmp_path / "text", lines(tmp_path / "p.jsonl", {"prompt": "a"}))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"class": 3}, ["class 3", "0..2"]),
        ({"class": -1}, ["class -1", "0..2"]),
        ({"prompt": "abc"}, ["'abc'", '"class": 0..2']),
        ({"text": "a<mask>"}, ["'a<mask>'", '"class": 0..2']),
    ],
)
def test_classes_that_do_not_fit_are_refused(conditional, tmp_path, line, named):
    with refused(UserError, *named):
        run(conditional, tmp_path / "out", lines(tmp_path / "p.jsonl", {"class": 0}, line))
    assert not (tmp_path / "out").exists()


def test_what_needs_a_condition_is_refused_without(unconditional, tmp_path):
    with refused(UserError, "class 1"):
        run(unconditional, tmp_path / "class", lines(tmp_path / "p.jsonl", {"class": 1}))
    with refused(UserError, "guidance", "objective.num_classes", "objective.prefix_length"):
        run(unconditional, tmp_path / "guidance", samples_from_scratch(1), guidance=2.0)
    with refused(UserError, "guidance", -1.0):
        run(unconditional, tmp_path / "guidance", samples_from_scratch(1), guidance=-1.0)


@pytest.mark.parametrize("value", ["3", 3.0, True, None, [1]])
def test_a_class_is_an_integer(tmp_path, value):
    (request,) = lines(tmp_path / "p.jsonl", {"class": value})
    assert_names(request.fault, "'class'", "integer")


def test_a_class_may_stand_beside_a_prompt(tmp_path):
    requests = lines(tmp_path / "p.jsonl", {"prompt": "a", "class": 1}, {"text": "<mask>", "class": 0})
    assert [assign_class(request, 2).as_dict() for request in requests] == [
        {"number": 0, "prompt": "a", "class": 1},
        {"number": 1, "text": "<mask>", "class": 0},
    ]
