"""Which documents, and which parts of few documents, are for validation."""

import json

import numpy as np
import pytest

from nar_scale.commands import prepare as launcher
from nar_scale.data.formats.documents import Document, cut_document
from nar_scale.data.preparation.merge import EmptySplit
from nar_scale.data.shards.layout import FEW_VALIDATION_SAMPLES
from nar_scale.errors import UserError
from tests.data.corpora import check_whole, read_split
from tests.errors import assert_names, refused

from .preparing import made, plan

LINES = "".join(f"line {number} ends here: äöü\n" for number in range(400))


def text_of(output, split):
    tokens = np.concatenate([sample.tokens for sample in read_split(output, split)])
    return bytes(tokens[tokens < 256].astype(np.uint8)).decode()


@pytest.fixture
def one_text(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text(LINES)
    return path


def test_the_last_part_of_one_text_is_for_validation(one_text, tmp_path, caplog):
    with caplog.at_level("INFO"):
        info = made(one_text, tmp_path / "data", validation=0.1)
    by_place, samples = caplog.messages[-2:]
    assert_names(by_place, "few documents", 0.1, "--validation-input")
    assert_names(samples, info.splits["validation"].samples, "validation", FEW_VALIDATION_SAMPLES, "--validation")
    train, validation = (text_of(tmp_path / "data", split) for split in ("train", "validation"))
    assert train + validation == LINES
    assert validation.startswith("line ")
    assert 0.09 < len(validation) / len(LINES) < 0.12
    assert info.splits["validation"].bytes == len(validation.encode())
    check_whole(tmp_path / "data")


def test_only_few_validation_samples_are_worth_a_remark(one_text, tmp_path, caplog):
    with caplog.at_level("INFO"):
        info = made(one_text, tmp_path / "data", validation=0.5)
    assert info.splits["validation"].samples >= FEW_VALIDATION_SAMPLES
    assert not any(str(FEW_VALIDATION_SAMPLES) in message for message in caplog.messages)


def test_the_last_part_of_each_of_ten_rows_is_for_validation(tmp_path):
    path = tmp_path / "ten.jsonl"
    rows = [f"{number}" * 50 for number in range(10)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    info = made(path, tmp_path / "data", validation=0.02)
    assert (info.splits["train"].documents, info.splits["validation"].documents) == (10, 10)
    assert text_of(tmp_path / "data", "validation") == "0123456789"


def test_enough_documents_are_split_by_their_contents_as_ever(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(10):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"document {number}")
    assert not plan(tmp_path / "texts", tmp_path / "data", validation=0.1).recipe.by_place
    few = plan(tmp_path / "texts", tmp_path / "data", validation=0.09)
    assert few.recipe.by_place
    assert not plan(tmp_path / "texts", tmp_path / "data", validation=0.09, packed=False).recipe.by_place
    assert not plan(tmp_path / "texts", tmp_path / "data", validation=0).recipe.by_place


def test_a_document_is_cut_at_a_line_or_else_between_characters():
    assert [part.text for part in cut_document(Document(b"ab\ncd\nefgh", None, 10), 0.5)] == [b"ab\n", b"cd\nefgh"]
    assert [part.text for part in cut_document(Document("aäöü".encode(), None, 70), 0.5)] == [
        b"a\xc3\xa4",
        b"\xc3\xb6\xc3\xbc",
    ]
    first, last = cut_document(Document(None, np.arange(10), 20), 0.3)
    assert (first.tokens.tolist(), last.tokens.tolist()) == ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert (first.size, last.size) == (14, 6)
    short = Document(b"a", None, 1)
    assert cut_document(short, 0.9) == (short, None)


def test_validation_documents_of_their_own(one_text, tmp_path):
    (tmp_path / "own.txt").write_text("for validation alone")
    output = tmp_path / "data"
    info = made(one_text, output, validation_inputs=[tmp_path / "own.txt"], validation=0.5)
    assert text_of(output, "train") == LINES
    assert text_of(output, "validation") == "for validation alone"
    assert info.splits["validation"].documents == 1
    check_whole(output)


def test_validation_documents_belong_to_the_plan(one_text, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("for validation alone")
    fingerprints = {
        plan(one_text, tmp_path / "data").fingerprint,
        plan(one_text, tmp_path / "data", validation=0).fingerprint,
        plan(one_text, tmp_path / "data", validation_inputs=[own]).fingerprint,
        plan(own, tmp_path / "data", validation_inputs=[one_text]).fingerprint,
    }
    assert len(fingerprints) == 4


def test_validation_inputs_that_cannot_be(one_text, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with refused(UserError, one_text, "--validation-input"):
        made(one_text, tmp_path / "data", validation_inputs=[one_text])
    with refused(EmptySplit, "--validation-input"):
        made(one_text, tmp_path / "data", validation_inputs=[empty])
    arguments = ["--input", str(one_text), "--output", str(tmp_path / "data"), "--seq-len", "8", "--validation", "0.1"]
    with pytest.raises(SystemExit):
        launcher.main([*arguments, "--validation-input", str(empty)])
    assert_names(capsys.readouterr().err.splitlines()[-1], "--validation", "--validation-input")


def test_the_command_takes_validation_documents(one_text, tmp_path, capsys):
    (tmp_path / "own.txt").write_text("for validation alone")
    arguments = ["--input", str(one_text), "--validation-input", str(tmp_path / "own.txt"), "--seq-len", "64"]
    assert launcher.main([*arguments, "--output", str(tmp_path / "data")]) == 0
    assert text_of(tmp_path / "data", "validation") == "for validation alone"
