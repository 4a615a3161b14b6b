"""Mistakes in what is prepared, and in the data that a run is given."""

import json
from pathlib import Path

from .mistake import Mistake, own, write

PREPARE = "prepare --input corpus --output new --seq-len 32"


def edit_info(**changes: object):
    def prepare(here: Path) -> None:
        path = own("data", here) / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return prepare


def damage(name: str, content: bytes | None):
    """Overwrite or delete a file of a copy of the data set."""

    def prepare(here: Path) -> None:
        (path,) = own("data", here).glob(name)
        path.unlink() if content is None else path.write_bytes(content)

    return prepare


def empty_folder(name: str):
    return lambda here: (here / name).mkdir()


MISTAKES = {
    "prepare: no input": Mistake("prepare --output new --seq-len 32", ("--input",)),
    "prepare: no output": Mistake("prepare --input corpus --seq-len 32", ("--output",)),
    "prepare: no length": Mistake("prepare --input corpus --output new", ("--seq-len",)),
    "prepare: length 0": Mistake(f"{PREPARE} --seq-len 0", ("seq_len", "0")),
    "prepare: length in words": Mistake(f"{PREPARE} --seq-len long", ("--seq-len", "long")),
    "prepare: input is missing": Mistake("prepare --input nowhere --output new --seq-len 32", ("nowhere",)),
    "prepare: an empty folder": Mistake(
        "prepare --input none --output new --seq-len 32", ("none",), empty_folder("none")
    ),
    "prepare: nothing is included": Mistake(f"{PREPARE} --include *.md", ("corpus", "include")),
    "prepare: an empty file": Mistake(
        "prepare --input a.txt --output new --seq-len 32", ("a.txt",), write("a.txt", "")
    ),
    "prepare: a binary file": Mistake(
        "prepare --input a.bin --output new --seq-len 32", ("a.bin",), write("a.bin", bytes(range(256)))
    ),
    "prepare: damaged JSON": Mistake(
        "prepare --input a.jsonl --output new --seq-len 32",
        ("a.jsonl", "14"),
        write("a.jsonl", '{"text": "a"}\n{"text\n'),
    ),
    "prepare: no such key": Mistake(
        "prepare --input a.jsonl --output new --seq-len 32",
        ("a.jsonl", "text", "content"),
        write("a.jsonl", '{"content": "a"}\n'),
    ),
    "prepare: a truncated gzip": Mistake(
        "prepare --input a.txt.gz --output new --seq-len 32", ("a.txt.gz",), write("a.txt.gz", b"\x1f\x8b\x08")
    ),
    "prepare: a truncated tar": Mistake(
        "prepare --input a.tar --output new --seq-len 32", ("a.tar",), write("a.tar", b"a.txt" + bytes(400))
    ),
    "prepare: no parquet": Mistake(
        "prepare --input a.parquet --output new --seq-len 32", ("a.parquet",), write("a.parquet", b"PAR1")
    ),
    "prepare: a tokenizer that is missing": Mistake(f"{PREPARE} --tokenizer nowhere.json", ("nowhere.json",)),
    "prepare: a tokenizer that is none": Mistake(f"{PREPARE} --tokenizer small.yaml", ("small.yaml",)),
    "prepare: validation above 1": Mistake(f"{PREPARE} --validation 2", ("validation", "2")),
    "prepare: no workers": Mistake(f"{PREPARE} --workers 0", ("workers", "0")),
    "prepare: part beyond the last": Mistake(f"{PREPARE} --part 3/2", ("3/2",)),
    "prepare: part in words": Mistake(f"{PREPARE} --part two", ("--part", "two")),
    "prepare: merge before the parts": Mistake(f"{PREPARE} --merge", ("--merge",)),
    "prepare: a data set is there": Mistake(
        "prepare --input corpus --output data --seq-len 64", ("data", "--overwrite")
    ),
    "prepare: a vocabulary too small": Mistake(f"{PREPARE} --tokenizer new.json --train-tokenizer 3", ("3",)),
    "prepare: output is a file": Mistake("prepare --input corpus --output small.yaml --seq-len 32", ("small.yaml",)),
    "verify: no data set": Mistake("prepare --verify corpus", ("corpus",)),
    "verify: nothing there": Mistake("prepare --verify nowhere", ("nowhere",)),
    "inspect: no shards": Mistake("prepare --inspect corpus", ("corpus",)),
    "index: nothing there": Mistake("prepare --index nowhere", ("nowhere",)),
    "two jobs at once": Mistake("prepare --verify data --inspect data", ("--verify", "--inspect")),
    "train: no data": Mistake("train --config small.yaml data.directory=nowhere", ("nowhere",)),
    "train: data is a file": Mistake("train --config small.yaml data.directory=small.yaml", ("small.yaml",)),
    "train: no shard of that name": Mistake("train --config small.yaml 'data.train=train/x-*.tar'", ("x-*.tar",)),
    "train: raw text": Mistake("train --config small.yaml data.directory=corpus", ("corpus",)),
    "train: another field": Mistake("train --config small.yaml data.field=ids.npy", ("ids.npy",)),
    "train: shorter than the data": Mistake(
        "train --config small.yaml model.max_seq_len=16", ("32", "model.max_seq_len", "16")
    ),
    "train: a vocabulary too small": Mistake(
        "train --config small.yaml data.vocabulary_size=100", ("data.vocabulary_size", "100", "257")
    ),
    "train: http without a cache": Mistake(
        "train --config small.yaml data.directory=http://localhost:1/x",
        ("http://localhost:1/x", "cache_directory"),
    ),
    "train: a shell command": Mistake(
        "train --config small.yaml 'data.train=pipe:cat x'", ("pipe:cat x", "data.sequential")
    ),
    "train: dataset.json is damaged": Mistake(
        "train --config small.yaml", ("dataset.json",), damage("dataset.json", b"{")
    ),
    "train: dataset.json is not UTF-8": Mistake(
        "train --config small.yaml", ("dataset.json",), damage("dataset.json", b"\xff")
    ),
    "train: dataset.json is a list": Mistake(
        "train --config small.yaml", ("dataset.json",), damage("dataset.json", b"[]")
    ),
    "train: a shard is missing": Mistake(
        "train --config small.yaml", ("shard-000000.tar",), damage("train/shard-000000.tar", None)
    ),
    "train: a shard is empty": Mistake(
        "train --config small.yaml", ("shard-000000.tar",), damage("train/shard-000000.tar", b"")
    ),
    "train: a shard is no tar": Mistake(
        "train --config small.yaml", ("shard-000000.tar",), damage("train/shard-000000.tar", b"text" * 500)
    ),
    "train: a wrong type in dataset.json": Mistake(
        "train --config small.yaml", ("dataset.json", "vocabulary_size"), edit_info(vocabulary_size="many")
    ),
    "train: a tokenizer that is none": Mistake(
        "train --config small.yaml logging.sample_every=2 data.tokenizer=tokenizer.json",
        ("tokenizer.json",),
        write("tokenizer.json", "{}"),
    ),
    "evaluate: no such split": Mistake(
        "evaluate --checkpoint nar --data data --output e.json --split test", ("test", "validation")
    ),
    "evaluate: no data": Mistake("evaluate --checkpoint nar --data nowhere --output e.json", ("nowhere",)),
}
