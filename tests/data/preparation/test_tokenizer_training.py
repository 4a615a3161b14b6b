import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nar_scale.commands import prepare as launcher
from nar_scale.data import DatasetInfo, load_tokenizer, train_tokenizer
from nar_scale.errors import DataError, UserError
from tests.data.corpora import read_split
from tests.errors import assert_names, refused

ROOT = Path(__file__).parents[3]


TEXTS = [
    "the quick brown fox jumps over the lazy dog\n" * 20,
    "häuser und bäume, straßen und plätze\n" * 20,
    "x\ty  z\r\n",
]


@pytest.fixture
def corpus(tmp_path):
    """Text in two files and two lines; tokens and a binary file, of which nothing is to be learned."""
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text(TEXTS[0])
    (root / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[1:]))
    (root / "binary.txt").write_bytes(b"zqzqzqzq\0" * 100)
    return root


def learn(inputs, vocabulary_size, path, **options):
    pytest.importorskip("tokenizers")
    train_tokenizer([inputs], vocabulary_size, path, progress=False, **options)
    return load_tokenizer(path)


@pytest.mark.parametrize("vocabulary_size", [257, 258, 300])
def test_a_learned_vocabulary_is_as_large_as_asked_for(corpus, tmp_path, vocabulary_size):
    tokenizer = learn(corpus, vocabulary_size, tmp_path / "new" / "t.json")
    assert tokenizer.vocabulary_size == vocabulary_size
    assert 0 <= tokenizer.end_token < vocabulary_size


@pytest.mark.parametrize(
    "text", [*TEXTS, "", " ", "  leading", "\n\n\n", "日本語 🙂 \u200b", "".join(map(chr, range(1, 1024))), "▒"]
)
def test_a_learned_tokenizer_gives_back_every_text(corpus, tmp_path, text):
    tokenizer = learn(corpus, 300, tmp_path / "t.json")
    ids = tokenizer.encode(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_token not in ids
    if text == TEXTS[0]:
        assert len(ids) < len(text) / 2


def test_the_same_input_gives_the_same_tokenizer(corpus, tmp_path):
    for name in ("a.json", "b.json"):
        learn(corpus, 320, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_nothing_is_learned_of_tokens_nor_of_itself(corpus, tmp_path):
    learn(corpus, 300, tmp_path / "a.json")
    np.save(corpus / "tokens.npy", np.arange(1000))
    (corpus / "b.json").write_text("qqqqqqqqqqqqq" * 1000)
    learn(corpus, 300, corpus / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (corpus / "b.json").read_bytes()


def test_of_much_text_some_is_taken_from_everywhere(tmp_path):
    for number, letter in enumerate("abcdefghijklmnop"):
        (tmp_path / f"{number:02d}.txt").write_text(f"{letter * 5} " * 200)
    tokenizer = learn(tmp_path, 400, tmp_path / "t.json", include="*.txt", max_bytes=5000)
    learned = [letter for letter in "abcdefghijklmnop" if len(tokenizer.encode(f" {letter * 5}".encode())) == 1]
    assert learned == ["a", "e", "i", "m"]


@pytest.mark.parametrize("vocabulary_size", [-1, 0, 256])
def test_a_vocabulary_too_small_for_the_bytes_is_refused(corpus, tmp_path, vocabulary_size):
    with refused(UserError, vocabulary_size, 257):
        learn(corpus, vocabulary_size, tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize("include", ["*.npy", "binary.txt", "nothing"])
def test_input_without_text_is_refused(corpus, tmp_path, include):
    np.save(corpus / "tokens.npy", np.arange(1000))
    with refused(DataError, corpus):
        learn(corpus, 300, tmp_path / "t.json", include=include)
    assert not (tmp_path / "t.json").exists()


def test_an_unwritable_place_for_the_learned_tokenizer_is_named(corpus, tmp_path):
    (tmp_path / "file").touch()
    with refused(DataError, tmp_path / "file" / "t.json"):
        learn(corpus, 300, tmp_path / "file" / "t.json")


def test_learning_without_the_package_says_what_to_install(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refused(UserError, "pip install 'nar_scale[tokenizers]'"):
        train_tokenizer([corpus], 300, tmp_path / "t.json")


# Learning by command


def flags(corpus, tmp_path, *more):
    line = f"--input {corpus} --output {tmp_path}/data --tokenizer {tmp_path}/t.json --seq-len 16 --validation 0"
    return [*line.split(), "--workers", "1", *more]


def documents(output):
    tokenizer = load_tokenizer(DatasetInfo.load(output).tokenizer, output)
    tokens = np.concatenate([sample.tokens for sample in read_split(output, "train")])
    return [
        tokenizer.decode(part[:-1]) for part in np.split(tokens, np.flatnonzero(tokens == tokenizer.end_token) + 1)[:-1]
    ]


def test_a_learned_tokenizer_is_written_and_used(corpus, tmp_path, capsys):
    assert launcher.main(flags(corpus, tmp_path, "--train-tokenizer", "300")) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"wrote {tmp_path}/t.json\n")
    assert printed.err == ""
    info = DatasetInfo.load(tmp_path / "data")
    assert (info.tokenizer, info.vocabulary_size) == ("tokenizer.json", 300)
    assert (tmp_path / "data" / "tokenizer.json").read_bytes() == (tmp_path / "t.json").read_bytes()
    assert documents(tmp_path / "data") == TEXTS
    assert info.splits["train"].tokens < info.splits["train"].bytes / 2


def test_a_tokenizer_that_is_there_is_used_as_it_is(corpus, tmp_path, capsys):
    learn(corpus, 270, tmp_path / "t.json")
    before = (tmp_path / "t.json").read_bytes()
    assert launcher.main(flags(corpus, tmp_path, "--train-tokenizer", "300")) == 0
    assert f"{tmp_path}/t.json is there already and is used as it is\n" in capsys.readouterr().out
    assert (tmp_path / "t.json").read_bytes() == before
    assert DatasetInfo.load(tmp_path / "data").vocabulary_size == 270


def test_a_tokenizer_is_learned_before_the_parts(corpus, tmp_path, capsys):
    learning = ("--train-tokenizer", "300")
    for work in (["--part", "1/2"], ["--merge"]):
        assert launcher.main(flags(corpus, tmp_path, *learning, *work)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert_names(error.rstrip("\n"), tmp_path / "t.json", "--train-tokenizer", "--output")
    alone = ["--input", str(corpus), "--tokenizer", f"{tmp_path}/t.json", *learning]
    assert launcher.main(alone) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path}/t.json\n")
    for work in (["--part", "1/2"], ["--part", "2/2"], ["--merge"]):
        assert launcher.main(flags(corpus, tmp_path, *learning, *work)) == 0
    assert documents(tmp_path / "data") == TEXTS


def test_nothing_is_printed_about_processes_where_a_tokenizer_was_learned_before_them(corpus, tmp_path):
    command = [sys.executable, ROOT / "launcher" / "prepare.py", *flags(corpus, tmp_path, "--train-tokenizer", "300")]
    command += ["--workers", "2", "--unit-bytes", "100"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert documents(tmp_path / "data") == TEXTS
