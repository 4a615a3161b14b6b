"""Which files of folders are read, under which name, and what is said of those that are not."""

import gzip
import json
import os
import socket

import pyarrow
import pyarrow.parquet
import pytest

from nar_scale.data import plan_dataset, prepare, train_tokenizer
from nar_scale.data.preparation.corpus import find_corpus
from nar_scale.errors import DataError
from tests.data.corpora import count_documents, read_documents, tree
from tests.data.formats.reading import jsonl
from tests.data.preparation.preparing import made, plan, write_tokenizer
from tests.data.shard_files import write_tar
from tests.errors import refused

DOCUMENTS = [f"document {number}" for number in range(50)]


def hub_cache(root):
    """A folder as the Hugging Face hub's cache: links to files whose names are digests."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "rev" / "data"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    lines = jsonl(DOCUMENTS)
    (blobs / "aa11").write_bytes(lines)
    (blobs / "bb22").write_bytes(gzip.compress(lines))
    pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), blobs / "cc33")
    for name, blob in {"a.jsonl": "aa11", "b.jsonl.gz": "bb22", "c.parquet": "cc33"}.items():
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    return root


@pytest.mark.parametrize("start", [".", "snapshots", "snapshots/rev/data"])
def test_links_are_read_by_their_own_names(tmp_path, start):
    root = hub_cache(tmp_path / "hub")
    made(root / start, tmp_path / "data")
    assert count_documents(tmp_path / "data") == {text.encode(): 3 for text in DOCUMENTS}
    assert len(find_corpus([root, root / start], "*", (), []).files) == 3


def test_a_file_given_as_a_link_is_read_by_the_name_of_the_link(tmp_path):
    folder = hub_cache(tmp_path / "hub") / "snapshots" / "rev" / "data"
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        made([folder / name, folder / name], tmp_path / name)
        assert read_documents(tmp_path / name, "train") == [text.encode() for text in DOCUMENTS]


def test_what_is_skipped_in_a_folder_is_told_by_kind_with_an_example(tmp_path):
    root = tmp_path / "corpus"
    (root / "real").mkdir(parents=True)
    for name in ("a.txt", ".hidden", "b.tar.gz", "c.zip", "d.zip", "e.png"):
        (root / name).write_bytes(b"\0" if name == "e.png" else b"text")
    (root / "gone.txt").symlink_to("nowhere")
    (root / "linked").symlink_to(root / "real")
    os.mkfifo(root / "pipe")
    corpus = find_corpus([root], "*", (), [])
    assert [file.name for file in corpus.files] == ["a.txt", "e.png"]
    assert corpus.skipped.counts == {
        "link to a folder": 1,
        "hidden": 1,
        "compressed tar": 1,
        "archive": 2,
        "broken link": 1,
        "pipe or device": 1,
    }
    assert corpus.skipped.examples["archive"] == f"{root}/c.zip"
    assert f"2 archive (such as {root}/c.zip)" in str(corpus.skipped)
    info = made(root, tmp_path / "data")
    assert info.skipped == {**corpus.skipped.counts, "binary": 1, "empty": 0}


def test_a_run_that_skips_more_than_it_reads_says_so(tmp_path, capsys, monkeypatch):
    from nar_scale.commands import prepare as launcher

    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("read")
    (root / "b.png").write_bytes(b"\0")
    arguments = ["--input", str(root), "--seq-len", "8", "--validation", "0", "--workers", "1", "--output"]
    assert launcher.main([*arguments, str(tmp_path / "few")]) == 0
    said = capsys.readouterr()
    assert f"skipped: 1 binary (such as {root}/b.png)" in said.out
    assert said.err == ""
    (root / "c.png").write_bytes(b"\0")
    assert launcher.main([*arguments, str(tmp_path / "most")]) == 0
    assert f"more was skipped than read; skipped: 2 binary (such as {root}/b.png)" in capsys.readouterr().err
    (root / "c.png").unlink()
    (root / "b.png").write_bytes(bytes(500))
    assert launcher.main([*arguments, str(tmp_path / "large")]) == 0
    assert "more was skipped than read" in capsys.readouterr().err


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    reading, writing = os.pipe()
    try:
        for path in (tmp_path / "pipe.jsonl", tmp_path / "socket", "/dev/null", f"/dev/fd/{reading}"):
            with refused(DataError, path, "pipe", "file"):
                made([path], tmp_path / "data")
    finally:
        listener.close()
        os.close(reading)
        os.close(writing)


def test_an_open_file_is_read_by_the_name_of_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(DOCUMENTS))
    with open(tmp_path / "a.jsonl", "rb") as file:
        made([f"/dev/fd/{file.fileno()}"], tmp_path / "data")
        (tmp_path / "a.jsonl").unlink()
        with refused(DataError, "deleted"):
            made([f"/dev/fd/{file.fileno()}"], tmp_path / "again")
    assert read_documents(tmp_path / "data", "train") == [text.encode() for text in DOCUMENTS]


def captions(root):
    """What img2dataset leaves: a tar, a table of the same captions, and statistics."""
    root.mkdir()
    members = []
    for number, text in enumerate(DOCUMENTS):
        members += [(f"{number:09d}.jpg", b"\0"), (f"{number:09d}.json", json.dumps({"caption": text}).encode())]
        members += [(f"{number:09d}.txt", text.encode())]
    write_tar(root / "00000.tar", members)
    table = pyarrow.table({"caption": [*DOCUMENTS[::-1], "failed"], "text": [*DOCUMENTS[::-1], "failed"]})
    pyarrow.parquet.write_table(table, root / "00000.parquet")
    (root / "00000_stats.json").write_text(json.dumps({"count": 50, "successes": 49}, indent=4))
    return root


@pytest.mark.parametrize("text_field", ["text", "caption"])
def test_the_same_captions_in_two_formats_are_refused(tmp_path, text_field):
    root = captions(tmp_path / "captions")
    with refused(DataError, root / "00000.parquet", "00000.tar", "--exclude"):
        made(root, tmp_path / "data", text_field=text_field)
    assert not (tmp_path / "data").exists()
    info = made(root, tmp_path / "tar", text_field=text_field, exclude=["*.parquet"])
    assert info.splits["train"].documents == 50
    assert info.skipped["no text"] == 1  # the statistics
    info = made(root, tmp_path / "table", text_field=text_field, include="*.parquet")
    assert info.splits["train"].documents == 51
    info = made([root / "00000.tar", root / "00000.parquet"], tmp_path / "both", text_field=text_field)
    assert info.splits["train"].documents == 101


def test_files_of_one_stem_with_other_content_are_read(tmp_path):
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("one")
    (root / "a.txt.gz").write_bytes(gzip.compress(b"two"))
    (root / "a.jsonl").write_bytes(jsonl(["three", "four"]))
    (root / "sub" / "a.jsonl").write_bytes(jsonl(["three", "four"]))
    assert made(root, tmp_path / "data").splits["train"].documents == 6
    (root / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (root / "b.gz").write_bytes(gzip.compress(b"another"))
    with refused(DataError, root / "a.txt", "--exclude a.txt.gz"):
        made(root, tmp_path / "again")
    info = made(root, tmp_path / "again", exclude=["a.txt.gz", "su*"], max_skipped=0)
    assert info.splits["train"].documents == 4
    assert info.skipped["excluded"] == 2
    assert find_corpus([root], "*", ["s*"], []).skipped.examples == {"excluded": str(root / "sub")}


@pytest.mark.parametrize("others", [0, 3])
def test_a_whole_kind_is_proposed_only_where_most_of_it_are_copies(tmp_path, others):
    root = tmp_path / "corpus"
    root.mkdir()
    for number in range(2):
        (root / f"[{number}].txt").write_text(f"text {number}")
        (root / f"[{number}].jsonl").write_bytes(jsonl([f"text {number}"]))
    for number in range(others):
        (root / f"other {number}.txt").write_text(f"other {number}")
    with refused(DataError, root / "[0].jsonl", "'[[]0].txt'" if others else "'*.txt'", "2 pairs of 2"):
        made(root, tmp_path / "data")
    exclude = ["[[]0].txt", "[[]1].txt"] if others else ["*.txt"]
    assert made(root, tmp_path / "data", exclude=exclude).splits["train"].documents == 2 + others


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_called_as_a_tokenizer_is_read_like_any_other(tmp_path, monkeypatch, is_folder):
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("one")
    named = root / "byte"
    if is_folder:
        named.mkdir()
    (named / "b.txt" if is_folder else named).write_text("two")
    monkeypatch.chdir(root)
    assert made(root, tmp_path / "data").splits["train"].documents == 2


def test_the_files_beside_a_tokenizer_are_read(tmp_path):
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.txt").write_text("one")
    write_tokenizer(root / "sub" / "tokenizer.json")
    (root / "link.json").symlink_to("sub/tokenizer.json")
    for number, spec in enumerate((root / "sub", root / "sub" / "tokenizer.json")):
        inputs = [root, root / "sub" / "tokenizer.json"]
        info = made(inputs, tmp_path / f"data{number}", tokenizer=str(spec))
        assert info.splits["train"].documents == 1


STRAY = {
    "a.csv": b"name,count\nx,1\n",
    "b.tsv.gz": gzip.compress(b"name\tcount\nx\t1\n"),
    "c.json": b'["words", "alone"]',
    "d.json": b'[{"name": "x"}, {"name": "y"}]',
    "e.jsonl": b'{"name": "x"}\n{"name": "y"}\n',
    "f.parquet": None,
}


def strays(root):
    """A corpus of one text among tables and JSON of other things."""
    root.mkdir()
    (root / "z.txt").write_text("text")
    for name, content in STRAY.items():
        if content is None:
            pyarrow.parquet.write_table(pyarrow.table({"name": ["x"]}), root / name)
        else:
            (root / name).write_bytes(content)
    return root


def test_tables_and_json_of_other_things_are_skipped_in_folders(tmp_path):
    root = strays(tmp_path / "corpus")
    (root / "z.csv").write_bytes(STRAY["a.csv"])  # the stem of the text
    info = made(root, tmp_path / "data")
    assert (info.splits["train"].documents, info.skipped["no text"]) == (1, len(STRAY) + 1)
    with refused(DataError, "max_skipped is 6", "no text"):
        made(root, tmp_path / "few", max_skipped=6)
    (root / "z.txt").unlink()
    with refused(DataError, root / "a.csv", "'name', 'count'", *(root / name for name in STRAY)):
        made(root, tmp_path / "none")


def test_what_has_no_text_is_refused_by_its_name_before_work_begins(tmp_path):
    root = strays(tmp_path / "corpus")
    inputs = [root, *(root / name for name in STRAY)]
    with refused(DataError, "no column", *(root / name for name in STRAY)):
        plan_dataset(inputs, tmp_path / "data", seq_len=64, workers=1)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": b'{"version": 1}\n{"text": "a"}\n', "b.json": b'[{"id": 1}, {"text": "a"}]'},
        {"a.txt": b'{"a": 1}\nis how JSON begins.\n', "b.md": b'["a", "b"] is a list.'},
        {"a.json": b'[{"text": "a"', "b.csv": b'text,b\n"a"b,1\n'},
        {"a.csv": b"text,text\na,b\n", "b.jsonl": b"no JSON\n"},
    ],
)
def test_what_may_have_text_is_refused_before_work_begins(tmp_path, files):
    (tmp_path / "corpus").mkdir()
    for name, content in files.items():
        (tmp_path / "corpus" / name).write_bytes(content)
    (tmp_path / "corpus" / "z.txt").write_text("text")
    with refused(DataError, *(tmp_path / "corpus" / name for name in files)):
        plan(tmp_path / "corpus", tmp_path / "data")


def test_a_tokenizer_is_trained_on_what_has_text(tmp_path):
    root = strays(tmp_path / "corpus")
    train_tokenizer([root], 258, tmp_path / "t.json", progress=False)
    with refused(DataError, root / "a.csv"):
        train_tokenizer([root / "a.csv"], 258, tmp_path / "u.json", progress=False)


def test_names_that_are_not_utf_8(tmp_path):
    root = os.fsencode(tmp_path / "corpus")
    os.makedirs(root + b"/\xff")
    for name, content in {
        b"a\xff.txt": b"one",
        b"b\xff.jsonl": jsonl(["two"]),
        b"c\xff.txt.gz": gzip.compress(b"three"),
        b"\xff/d.csv": b"text\nfour\n",
        b"\xff/e\xfe": b"\0",
    }.items():
        with open(root + b"/" + name, "wb") as file:
            file.write(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["five"]}), tmp_path / "t.parquet")
    os.rename(tmp_path / "t.parquet", root + b"/p\xff.parquet")
    for workers in (1, 2):
        output = tmp_path / os.fsdecode(b"data\xff%d" % workers)
        info = prepare([tmp_path / "corpus"], output, seq_len=8, validation=0, workers=workers, unit_bytes=5)
        assert info.skipped["binary"] == 1
        assert count_documents(output) == dict.fromkeys((b"one", b"two", b"three", b"four", b"five"), 1)
    with refused(DataError, "binary", "\\xff/e\\xfe"):
        made(tmp_path / "corpus", tmp_path / "none", include=os.fsdecode(b"*\xfe"))


def test_a_link_of_another_name_gives_the_same_data_set(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to("a.txt")
    made(tmp_path / "a.txt", tmp_path / "a")
    made(tmp_path / "b.txt", tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
