"""A loaded model generates what a worker writes."""

import math

import pytest

import nar_scale
from nar_scale.checkpoint import LoadedModel
from nar_scale.errors import UserError
from nar_scale.generation import Request, SamplingOptions, generate, read_results
from tests.errors import assert_names, refused
from tests.generation.helpers import KINDS, export

PROMPTS = ["ab", "c"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    conditional = {"objective": {"num_classes": 3}, "data": {"class_field": "class.txt"}}
    return {
        **{kind: export(directory / kind, kind) for kind in KINDS},
        "conditional": export(directory / "conditional", "non_autoregressive", **conditional),
        "images": export(
            directory / "images",
            "non_autoregressive",
            vocabulary_size=5,
            tokenizer=None,
            logging={"image_shape": [4, 6]},
        ),
    }


def written(checkpoint, directory, requests, **options):
    """What a worker writes, with the prompt before a text that has none."""
    results = read_results(generate(checkpoint, directory, requests, SamplingOptions(**options), progress=False))
    whole = nar_scale.load(checkpoint).wrapper.fills_gaps
    return [("" if whole else result.get("prompt", "")) + result["generated"] for result in results]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_a_worker(checkpoints, tmp_path, kind):
    model = nar_scale.load(checkpoints[kind])
    assert isinstance(model, LoadedModel)
    requests = [Request(number, prompt=prompt) for number, prompt in enumerate(PROMPTS)]
    texts = model.generate(PROMPTS, seed=3, batch_size=1)
    assert texts == written(checkpoints[kind], tmp_path / "default", requests, seed=3)
    assert [text[: len(prompt)] for text, prompt in zip(texts, PROMPTS)] == PROMPTS
    assert model.generate("ab", seed=3) == texts[0]
    assert model.generate(["ab"], seed=3) == texts[:1]

    scratch = model.generate(seed=3, temperature=0.5, top_k=5, length=16)
    options = {"seed": 3, "temperature": 0.5, "top_k": 5, "length": 16}
    assert [scratch] == written(checkpoints[kind], tmp_path / "scratch", [Request(0)], **options)
    assert model.generate(num_samples=2, **options)[0] == scratch
    assert model.generate(num_samples=2, **{**options, "seed": 4})[0] != scratch


@pytest.mark.parametrize("kind", ["non_autoregressive", "block_diffusion"])
def test_gaps_are_filled(checkpoints, tmp_path, kind):
    model = nar_scale.load(checkpoints[kind])
    text = "a<mask:4>b<mask>"
    settings = {"sampler": "threshold", "threshold": 0.5}
    filled = model.generate([text, "ab"], **settings)
    requests = [Request(0, text=text), Request(1, prompt="ab")]
    options = {"sampler": "threshold", "sampler_options": {"threshold": 0.5}}
    assert filled == written(checkpoints[kind], tmp_path / "out", requests, **options)
    sample, completed = model.samples([text, "ab"], **settings)
    assert len(sample.tokens) == 7
    assert (sample.tokens[0], sample.tokens[5]) == tuple(b"ab")
    assert kind == "block_diffusion" or len(completed.tokens) == 24


def test_classes_are_chosen(checkpoints, tmp_path):
    model = nar_scale.load(checkpoints["conditional"])
    in_turn = model.generate(num_samples=4)
    requests = [Request(number) for number in range(4)]
    assert in_turn == written(checkpoints["conditional"], tmp_path / "turn", requests)
    assert model.generate(classes=[0, 1, 2, 0]) == in_turn
    assert model.generate(classes=0) == in_turn[0]
    assert model.generate("ab", classes=2).startswith("ab")
    for arguments, named in [
        (("ab",), {"classes", "0..2"}),
        ((PROMPTS, [1]), {"1 classes", "2 samples"}),
        ((None, 3), {"class 3", "0..2"}),
    ]:
        with refused(UserError, *named):
            model.generate(arguments[0], classes=arguments[1] if len(arguments) > 1 else None)


def test_models_without_a_tokenizer_say_what_to_use(checkpoints):
    model = nar_scale.load(checkpoints["images"])
    with refused(UserError, "data.tokenizer", "model.samples()", "nar-scale generate --output"):
        model.generate()
    with refused(UserError, "wrapper.generate"):
        model.samples("ab")
    (sample,) = model.samples()
    assert (len(sample.tokens), sample.text) == (24, None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompts": "a<mask>"}, ["autoregressive", "gaps"]),
        ({"prompts": "ab", "num_samples": 2}, ["num_samples"]),
        ({"prompts": []}, ["num_samples", "prompt"]),
        ({"prompts": 5}, ["text", "wrapper.generate"]),
        ({"prompts": [5]}, ["text", "wrapper.generate"]),
        ({"prompts": "ab", "temperature": math.inf}, ["temperature", "inf"]),
        ({"num_samples": 0}, ["num_samples"]),
        ({"batch_size": 0}, ["batch_size", 0]),
        ({"length": 25}, ["length", 25, 24]),
        ({"prompts": "a" * 24}, ["24 tokens", "room"]),
        ({"threshold": 0.5}, ["threshold", "left_to_right"]),
        ({"temprature": 0.5}, ["temprature"]),
        ({"sampler": "random"}, ["random", "autoregressive", "left_to_right"]),
        ({"classes": 1}, ["class 1"]),
        ({"stop": ""}, ["stop"]),
    ],
)
def test_arguments_that_do_not_fit_are_named(checkpoints, arguments, named):
    with refused(UserError, *named):
        nar_scale.load(checkpoints["autoregressive"]).generate(**arguments)


def test_a_model_is_shown_in_a_line(checkpoints):
    shown = repr(nar_scale.load(checkpoints["hybrid"]))
    assert "\n" not in shown
    assert_names(shown, "hybrid", "self_speculative", "parameters")


def test_a_text_ends_before_a_stop(checkpoints):
    model = nar_scale.load(checkpoints["autoregressive"])
    text = model.generate("ab")
    letter = text[4]
    assert model.generate("ab", stop=letter) == text[: text.index(letter, 2)]
