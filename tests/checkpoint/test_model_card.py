"""The card beside a model says what is known, and what is not."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from nar_scale.checkpoint import describe_consolidated
from nar_scale.checkpoint.consolidated import RecordedLikelihood
from nar_scale.checkpoint.model_card import METRICS_FILE, model_card, recorded_likelihoods
from nar_scale.training.metrics import writer
from tests.generation.helpers import KINDS, export


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: describe_consolidated(export(root / kind, kind)) for kind in KINDS}


def card_of(model, name="mine", library="nar_scale", **known):
    return model_card(name, model.config, replace(model.info, **known), model.wrapper, library)


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        ("autoregressive", "autoregressive"),
        ("non_autoregressive", "masked-diffusion"),
        ("block_diffusion", "block-diffusion"),
        ("hybrid", "hybrid"),
    ],
)
def test_hugging_face_reads_the_card_of_each_kind(models, kind, tag):
    card = ModelCard(card_of(models[kind]))
    assert card.data.license == "unknown"
    assert card.data.library_name == "nar_scale"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["nar_scale", tag]
    parameters = sum(weight.numel() for weight in models[kind].wrapper.parameters())
    assert f"| parameters | {parameters:,} |" in card.text
    assert "| training data | nowhere |" in card.text
    assert f'"sampler": "{models[kind].info.decode.decoding.sampler}"' in card.text
    assert "likelihood" not in card.text  # none was measured


def test_what_is_known_is_said(models):
    measured = (
        RecordedLikelihood("", 40, 2.5, 0.0125, 1.25),
        RecordedLikelihood("code", 40, 3.5),
    )
    text = card_of(models["non_autoregressive"], license="apache-2.0", likelihoods=measured, step=1234, samples=5678)
    assert ModelCard(text).data.license == "apache-2.0"
    assert "| licence | apache-2.0 |" in text
    assert "validation data | 2.5000 ± 0.0125 nats/token (upper bound), 1.250 bits/byte, at step 40 |" in text
    assert "validation data of code | 3.5000 nats/token (upper bound), at step 40 |" in text
    assert "| training | 1,234 steps, 5,678 sequences, at most 136,272 tokens |" in text
    assert "nats/token (exact)" in card_of(models["autoregressive"], likelihoods=measured)


def test_a_model_that_was_imported_has_no_training_to_tell_of(models):
    text = card_of(models["autoregressive"], step=0, samples=0)
    assert "| training data | unknown" in text
    assert "| training |" not in text


def test_without_a_tokenizer_no_text_is_promised(models):
    for library in ("nar_scale", "transformers"):
        text = card_of(models["autoregressive"], tokenizer=None, library=library)
        assert ModelCard(text).data.pipeline_tag is None
        assert "Once" not in text
        assert "AutoTokenizer" not in text
    assert "AutoTokenizer" in card_of(models["autoregressive"], library="transformers")


def test_names_stay_in_their_places(models):
    text = card_of(models["autoregressive"], name="a|b<script>\x1b", license="mine: [x]\n---\n")
    assert ModelCard(text).data.license == "mine: [x]\n---\n"
    assert "# a\\|b\\<script\\>\\x1b" in text
    assert all(line.count(" | ") == 1 for line in text.splitlines() if line.startswith("| ") and line != "| | |")


def test_likelihoods_are_those_of_the_step(tmp_path):
    assert METRICS_FILE == writer.METRICS_FILE
    lines = [
        {
            "step": 10,
            "validation_nats_per_token": 3.0,
            "validation_standard_error": 0.1,
            "validation_bits_per_byte": 1.5,
        },
        {"step": 10, "validation_bound_nats_per_token": 9.0, "loss": 1.0},
        {"step": 20, "validation_nats_per_token": 2.0, "validation_standard_error": None},
        {"step": 20, "validation_my_code_nats_per_token": 2.5},
        {"step": 30, "validation_nats_per_token": 1.0},
        [],
    ]
    content = "\n".join(map(json.dumps, lines))
    (tmp_path / METRICS_FILE).write_text(f'{content}\nnothing\n{{"step": 20, "valid')
    assert recorded_likelihoods(tmp_path, 25) == (
        RecordedLikelihood("", 20, 2.0),
        RecordedLikelihood("my_code", 20, 2.5),
    )
    assert recorded_likelihoods(tmp_path, 10) == (RecordedLikelihood("", 10, 3.0, 0.1, 1.5),)
    assert recorded_likelihoods(tmp_path, 5) == ()
    assert recorded_likelihoods(tmp_path / "nowhere", 5) == ()
