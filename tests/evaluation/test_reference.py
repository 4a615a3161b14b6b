import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nar_scale.checkpoint import load_consolidated
from nar_scale.errors import DataError, UserError
from nar_scale.evaluation import CheckpointReference, TransformersReference
from tests.data.preparation.preparing import write_tokenizer
from tests.errors import refused
from tests.generation.helpers import export, export_with_tokenizer

EXPORT = Path(__file__).parents[2] / "launcher" / "export.py"
TEXTS = ["some words, ", "and a text that is longer than the model's sequence", "x"]


def reference_of(directory, kind, **sections):
    model = load_consolidated(export(directory, kind, **sections))
    return CheckpointReference(model.wrapper, model.tokenizer, str(directory), batch_size=2), model


def test_a_checkpoint_scores_every_token_of_every_text_once(tmp_path):
    reference, model = reference_of(tmp_path / "model", "autoregressive")
    sequences = [reference.join([text, "end"]) for text in TEXTS]
    total = 0.0
    for tokens in sequences:
        whole = torch.tensor([256, *tokens])
        for start in range(0, len(tokens), 23):
            window = whole[start : start + 24]
            with torch.no_grad():
                total += float(F.cross_entropy(model.wrapper.net(window[None, :-1])[0], window[1:], reduction="sum"))
    result = reference.likelihood([*sequences, []])
    assert result.tokens == sum(map(len, sequences))
    assert result.nats_per_token == pytest.approx(total / result.tokens, rel=1e-5)
    assert result.standard_error > 0


def test_documents_are_joined_by_the_end_token(tmp_path):
    reference, _ = reference_of(tmp_path / "model", "autoregressive")
    assert reference.join(["a", "bc"]) == [97, 256, 98, 99]


def test_a_model_that_fills_in_masks_scores_with_its_bound(tmp_path):
    reference, _ = reference_of(tmp_path / "model", "non_autoregressive")
    result = reference.likelihood([reference.encode(text) for text in TEXTS])
    assert (result.kind, result.tokens) == ("bound", sum(map(len, TEXTS)))
    assert 0 < result.nats_per_token < 2 * math.log(257)


def test_no_text_is_refused(tmp_path):
    reference, _ = reference_of(tmp_path / "model", "autoregressive")
    with refused(DataError, "text"):
        reference.likelihood([[], []])


def test_transformers_scores_an_exported_model_as_this_library_does(tmp_path):
    tokenizer = Path(write_tokenizer(tmp_path / "tokenizer.json"))
    directory = tmp_path / "model"
    model = load_consolidated(export_with_tokenizer(directory, tokenizer))
    ours = CheckpointReference(model.wrapper, model.tokenizer, str(directory), batch_size=2)
    command = [sys.executable, str(EXPORT), "--checkpoint", str(directory), "--format", "llama"]
    done = subprocess.run([*command, "--output", str(tmp_path / "llama")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = TransformersReference(tmp_path / "llama", batch_size=2)
    assert theirs.end_token == ours.end_token
    sequences = [ours.join([text, "end"]) for text in TEXTS]
    assert [theirs.join([text, "end"]) for text in TEXTS] == sequences
    expected, result = ours.likelihood(sequences), theirs.likelihood(sequences)
    assert (result.tokens, result.sequences, result.kind) == (expected.tokens, expected.sequences, "exact")
    assert result.nats_per_token == pytest.approx(expected.nats_per_token, rel=1e-5)
    assert result.standard_error == pytest.approx(expected.standard_error, rel=1e-3)
    assert theirs.features(sequences) == pytest.approx(ours.features(sequences), abs=1e-4)


def test_a_directory_that_transformers_cannot_read_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with refused(UserError, tmp_path):
        TransformersReference(tmp_path)


def test_the_extra_of_a_reference_of_transformers_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused(UserError, tmp_path, "'nar_scale[transformers]'"):
        TransformersReference(tmp_path)
