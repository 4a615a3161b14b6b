"""What becomes of the documents of a corpus: those without text, and the ends of those with it."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nar_scale.commands import prepare as launcher
from nar_scale.data import DatasetInfo, inspect, load_tokenizer, plan_dataset, verify
from nar_scale.errors import DataError, UserError
from tests.data.corpora import read_split
from tests.data.preparation.preparing import made
from tests.data.shard_files import write_tar
from tests.data.test_tokenizers import byte_level, unigram
from tests.errors import refused

ROOT = Path(__file__).parents[3]
TEXTS = [None if number == 20 else "" if number == 21 else f"document {number}" for number in range(40)]


def with_nulls(folder):
    """The same texts in all formats that can tell a null from an empty text."""
    folder.mkdir()
    objects = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    (folder / "b.json").write_text(json.dumps(objects))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "c.parquet")
    write_tar(folder / "d.tar", [(f"{row['id']}.json", json.dumps(row).encode()) for row in objects])
    return folder


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.parquet", "d.tar"])
def test_a_null_text_is_skipped_in_every_format_up_to_a_limit(tmp_path, name):
    file = with_nulls(tmp_path / "corpus") / name
    info = made(file, tmp_path / "data")
    assert info.splits["train"].documents == 38
    assert info.skipped == {"hidden": 0, "binary": 0, "empty": 1, "no text": 1}
    with refused(DataError, file, 2, "max_skipped is 1", "no text", "empty", "--max-skipped"):
        made(file, tmp_path / "limited", max_skipped=1)
    assert not list((tmp_path / "limited").glob("[!.]*"))  # only what a run with another limit goes on from
    assert made(file, tmp_path / "limited", max_skipped=2) == info
    with refused(UserError, "max_skipped", -1):
        made(file, tmp_path / "negative", max_skipped=-1)


def test_the_limit_holds_for_all_parts_together(tmp_path):
    root = with_nulls(tmp_path / "corpus")
    arguments = ["--input", str(root / "a.jsonl"), str(root / "c.parquet"), "--output", str(tmp_path / "data")]
    arguments += ["--seq-len", "16", "--validation", "0", "--workers", "1", "--unit-bytes", "1200", "--max-skipped"]
    for part in ("1/2", "2/2"):
        assert launcher.main([*arguments, "3", "--part", part]) == 0
    assert launcher.main([*arguments, "3", "--merge"]) == 2
    assert not (tmp_path / "data" / "dataset.json").exists()
    assert launcher.main([*arguments, "4", "--merge"]) == 0


def test_hidden_files_are_not_counted_to_the_limit(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in (".a", ".b", "c.txt"):
        (tmp_path / "corpus" / name).write_text("text")
    assert made(tmp_path / "corpus", tmp_path / "data", max_skipped=0).skipped["hidden"] == 2


def test_text_cannot_end_a_document_in_its_middle(tmp_path, capsys):
    tokenizer = byte_level(tmp_path / "t.json", ["<|endoftext|>"])
    documents = ["one <|endoftext|> one", "two", "<|endoftext|><|endoftext|>"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    arguments = ["--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "data"), "--seq-len", "64"]
    arguments += ["--document-ids", "--validation", "0", "--workers", "1", "--tokenizer", str(tokenizer)]
    assert launcher.main(arguments) == 0
    assert "special tokens that the text spells out, encoded as plain text: 3" in capsys.readouterr().out
    (sample,) = read_split(tmp_path / "data", "train")
    ends = np.flatnonzero(sample.tokens == 256)
    assert np.diff(ends, prepend=-1).tolist() == [len(text) + 1 for text in documents]
    assert np.flatnonzero(np.diff(sample.documents)).tolist() == ends[:-1].tolist()


def test_special_tokens_are_ids_where_that_is_wanted(tmp_path, capsys):
    tokenizer = byte_level(tmp_path / "t.json", ["<|endoftext|>", "<|im_start|>"])
    (tmp_path / "a.txt").write_text("<|im_start|>one<|endoftext|>two")
    flags = f"--input {tmp_path}/a.txt --seq-len 64 --validation 0 --workers 1"
    for form in ("text", "ids"):
        output = tmp_path / form
        options = ["--tokenizer", str(tokenizer), "--special-tokens", form, "--output", str(output)]
        assert launcher.main([*flags.split(), *options]) == 0
        info = DatasetInfo.load(output)
        (sample,) = read_split(output, "train")
        again = load_tokenizer(info.tokenizer, output, info.end_token, info.special_tokens)
        assert (info.special_tokens, sample.tokens.tolist()) == (
            form,
            [*again.encode((tmp_path / "a.txt").read_bytes()), 256],
        )
        assert (sample.tokens >= 256).sum() == {"text": 1, "ids": 3}[form]
        assert "spells out, encoded as " + {"text": "plain text: 2", "ids": "their ids: 2"}[form] in (
            capsys.readouterr().out
        )
        assert verify(output, workers=1, progress=False).info == info
    with refused(UserError, "tokenizer.json"):
        made(tmp_path / "a.txt", tmp_path / "no", special_tokens="ids")
    with refused(UserError, "'both'", "text or ids"):
        made(tmp_path / "a.txt", tmp_path / "no", tokenizer=str(tokenizer), special_tokens="both")


def test_what_was_prepared_before_there_was_a_choice_keeps_its_meaning(tmp_path):
    tokenizer = byte_level(tmp_path / "t.json", ["<|endoftext|>"])
    (tmp_path / "a.txt").write_text("one")
    plans = {
        form: plan_dataset(
            [tmp_path / "a.txt"], tmp_path / "data", seq_len=64, tokenizer=str(tokenizer), special_tokens=form
        )
        for form in ("text", "ids")
    }
    settings = asdict(plans["text"].recipe)
    del settings["tokenizer"], settings["special_tokens"]
    status = (tmp_path / "a.txt").stat()
    hasher = blake2b(repr(sorted(settings.items())).encode(), digest_size=8)
    hasher.update(f"{tmp_path.resolve()}/a.txt\0a.txt\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    assert plans["text"].fingerprint == hasher.hexdigest() != plans["ids"].fingerprint
    made(tmp_path / "a.txt", tmp_path / "data", tokenizer=str(tokenizer))
    content = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert content.pop("special_tokens") == "text"
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    assert DatasetInfo.load(tmp_path / "data").special_tokens == "ids"
    content["special_tokens"] = "both"
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    with refused(DataError, tmp_path / "data" / "dataset.json", "special_tokens"):
        DatasetInfo.load(tmp_path / "data")


def test_text_beside_arrays_of_its_tokens(tmp_path):
    tokenizer = byte_level(tmp_path / "t.json", ["<|endoftext|>"])
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("text")
    np.save(root / "b.npy", np.arange(200, dtype=np.uint16).reshape(2, 100))
    info = made(root, tmp_path / "data", tokenizer=str(tokenizer))
    assert (info.splits["train"].documents, info.splits["train"].tokens) == (3, 207)
    assert verify(tmp_path / "data", workers=1, progress=False).info == info
    assert info.splits["train"].bytes_per_token is None  # 4 bytes are not those of 207 tokens
    write_tar(root / "b.tar", [("0.txt", b"more"), ("1.tokens.npy", (root / "b.npy").read_bytes())])
    (root / "b.npy").unlink()
    info = made(root, tmp_path / "bytes")
    assert verify(tmp_path / "bytes", workers=1, progress=False).info == info
    info = made(root / "a.txt", tmp_path / "text", tokenizer=str(tokenizer))
    assert info.splits["train"].bytes_per_token == 4 / 5


def test_a_tokenizer_that_makes_the_end_token_of_text_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "one": 1, "</s>": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("one </s> one")
    with refused(DataError, tmp_path / "a.txt", 2, "--end-token"):
        made(tmp_path / "a.txt", tmp_path / "data", tokenizer=str(tmp_path / "t.json"))


def test_html_is_prepared_with_a_tokenizer_whose_end_token_closes_a_tag(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    unigram(tokenizers, ["<pad>", "</s>", "<unk>", *"abs/<>"]).save(str(tmp_path / "plain.json"))
    described = tokenizers.Tokenizer.from_file(str(tmp_path / "plain.json"))
    described.add_special_tokens(["</s>"])
    described.save(str(tmp_path / "t.json"))
    documents = ["<s>a</s>b", "</s>"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    made(tmp_path / "a.jsonl", tmp_path / "data", tokenizer=str(tmp_path / "t.json"))
    (sample,) = read_split(tmp_path / "data", "train")
    assert (sample.tokens == 1).sum() == 2
    assert sample.tokens[-1] == 1


def test_another_end_token_is_kept_with_the_data_set(tmp_path):
    tokenizer = byte_level(tmp_path / "t.json")
    (tmp_path / "a.txt").write_text("text <|end_of_text|> more")
    with refused(DataError, tokenizer, "--end-token", "<|end_of_text|>"):
        made(tmp_path / "a.txt", tmp_path / "data", tokenizer=str(tokenizer))
    flags = f"--input {tmp_path}/a.txt --output {tmp_path}/data --seq-len 64 --validation 0 --workers 1"
    assert launcher.main([*flags.split(), "--tokenizer", str(tokenizer), "--end-token", "<|end_of_text|>"]) == 0
    (sample,) = read_split(tmp_path / "data", "train")
    assert np.flatnonzero(sample.tokens == 257).tolist() == [25]
    assert "'<|end|>'" in str(verify(tmp_path / "data", workers=1))
    assert "tokens are not decoded" not in inspect(str(tmp_path / "data"))
    assert load_tokenizer("tokenizer.json", tmp_path / "data", 257).end_token == 257
    with refused(UserError, "<eos>", "tokenizer"):
        made(tmp_path / "a.txt", tmp_path / "no", tokenizer=None, vocabulary_size=9, end_token="<eos>")


def test_a_standard_output_that_takes_nothing_more(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100)
    command = [sys.executable, ROOT / "launcher" / "prepare.py", "--input", tmp_path / "a.txt", "--seq-len", "8"]
    command += ["--validation", "0", "--workers", "1", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, closed = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") as full:
        for name, output, status in (("pipe", closed, 0), ("full", full, 2)):
            done = subprocess.run(
                [*command, tmp_path / name], env=environment, stdout=output, stderr=subprocess.PIPE, check=False
            )
            assert (done.returncode, done.stderr.count(b"\n")) == (status, status // 2), done.stderr
            assert DatasetInfo.load(tmp_path / name).splits["train"].documents == 1
    os.close(closed)


def test_a_terminal_of_ascii_ends_nothing(tmp_path):
    name = tmp_path / "häuser\u2028.txt"
    name.write_text("text")
    command = [sys.executable, ROOT / "launcher" / "prepare.py", "--input", name, "--seq-len", "8", "--validation", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--output", tmp_path / "dätä"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"d\\xe4t\\xe4" in done.stdout
    name.unlink()
    done = subprocess.run([*command, "--output", tmp_path / "dätä"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"h\\xe4user" in done.stderr
