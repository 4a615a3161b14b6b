"""A corpus into a data set, from its files to the samples that training reads."""

import dataclasses
import fcntl
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
import zstandard

from nar_scale.data import ByteTokenizer, DatasetIndex, DatasetInfo, load_tokenizer, plan_dataset, prepare, verify
from nar_scale.data.formats.input_formats import Source
from nar_scale.data.formats.inputs import read_piece
from nar_scale.errors import DataError, UserError

from .corpora import count_documents, read_documents, read_split, tree, write_corpus
from .shards import write_samples

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


def made(inputs, output, **settings):
    settings = {"seq_len": 64, "validation": 0, "workers": 1, "progress": False, **settings}
    return prepare([inputs] if isinstance(inputs, Path) else inputs, output, **settings)


def text_of(output, split="train"):
    return ByteTokenizer().decode(np.concatenate([sample.tokens for sample in read_split(output, split)]))


# Documents


def test_no_document_is_lost(corpus, tmp_path):
    output = tmp_path / "data"
    info = made(corpus, output, validation=0.3, samples_per_shard=50)
    assert info == DatasetInfo.load(output)
    assert info.skipped == {"hidden": 1, "binary": 1, "empty": 1}
    for split, sizes in info.splits.items():
        samples = read_split(output, split)
        assert {sample.tokens.dtype for sample in samples} == {np.dtype(np.uint16)}
        assert [len(sample.tokens) for sample in samples[:-1]] == [64] * (len(samples) - 1)
        documents = read_documents(output, split)
        assert sizes == dataclasses.replace(
            sizes,
            documents=len(documents),
            samples=len(samples),
            tokens=sum(len(sample.tokens) for sample in samples),
            bytes=sum(map(len, documents)),
            shards=len(list((output / split).iterdir())) // 2,  # each has its index
        )
    assert count_documents(output) == Counter(write_corpus(tmp_path / "again"))
    assert info.splits["train"].shards > 2
    assert info.splits["train"].tokens % 64 != 0  # the tail was tested
    assert sorted(path.name for path in output.iterdir()) == ["dataset.json", "train", "validation"]


def test_what_is_written_passes_verification(corpus, tmp_path):
    made(corpus, tmp_path / "data", validation=0.3, samples_per_shard=20, unit_bytes=3000, document_ids=True)
    verify(tmp_path / "data", workers=1, progress=False)


def test_documents_stay_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    made(tmp_path, tmp_path / "data", seq_len=8)
    assert text_of(tmp_path / "data") == "a.txt\n<|end|>\nb.txt\n<|end|>\nc.txt\n<|end|>\n"
    assert not (tmp_path / "data" / "validation").exists()


def test_inputs_are_taken_in_the_order_given(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    made([tmp_path / "c.txt", tmp_path], tmp_path / "data")
    assert text_of(tmp_path / "data") == "c.txt\n<|end|>\na.txt\n<|end|>\nb.txt\n<|end|>\n"


def test_every_format_gives_the_same_documents(tmp_path):
    documents = [f"document {number} ü\n" * (number + 1) for number in range(6)]
    root = tmp_path / "corpus"
    root.mkdir()
    lines = "".join(json.dumps({"id": 1, "text": document}) + "\n" for document in documents).encode()
    zstd = zstandard.ZstdCompressor().compress
    (root / "a.txt").write_text(documents[0])
    (root / "a.md.gz").write_bytes(gzip.compress(documents[1].encode()))
    (root / "a.txt.zst").write_bytes(zstd(documents[2].encode()))
    for name, content in {".jsonl": lines, ".ndjson.gz": gzip.compress(lines), ".jsonl.zst": zstd(lines)}.items():
        (root / f"lines{name}").write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), root / "table.parquet", row_group_size=2)
    with webdataset.TarWriter(str(root / "samples.tar")) as writer:
        for number, document in enumerate(documents):
            writer.write({"__key__": f"{number}", "txt": document, "json": {"text": "not this"}})
    info = made(root, tmp_path / "data", unit_bytes=100)
    expected = Counter(document.encode() for document in documents[:3] + 5 * documents)
    assert count_documents(tmp_path / "data") == expected
    assert info.splits["train"].documents == 33
    assert info.splits["train"].bytes == sum(len(document) * times for document, times in expected.items())


def test_the_text_field_is_the_key_the_column_and_the_member(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.jsonl").write_text('{"text": "no", "body": "line"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["no"], "body": ["row"]}), root / "b.parquet")
    with webdataset.TarWriter(str(root / "c.tar")) as writer:
        writer.write({"__key__": "0", "txt": "no", "body": b"member"})
    made(root, tmp_path / "data", text_field="body")
    assert read_documents(tmp_path / "data", "train") == [b"line", b"row", b"member"]


def test_include_and_exclude(tmp_path):
    for name in ("keep/a.py", "keep/b.md", "site-packages/c.py", "keep/x-cache/d.py", "e_test.py"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    settings = {"seq_len": 8, "include": "*.py", "exclude": ["site-packages", "*-cache", "*_test.py"]}
    made(tmp_path / "in", tmp_path / "data", **settings)
    assert text_of(tmp_path / "data") == "keep/a.py\n<|end|>\n"
    made(tmp_path / "in" / "keep" / "b.md", tmp_path / "named", **settings)
    assert text_of(tmp_path / "named") == "keep/b.md\n<|end|>\n"


def test_a_file_given_twice_and_the_output_itself_are_not_read_again(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    first = made([tmp_path, tmp_path / "a.txt"], tmp_path / "data", seq_len=8)
    again = made(tmp_path, tmp_path / "data", seq_len=8, overwrite=True)
    assert first == again
    assert first.splits["train"].documents == 1


def test_an_unreadable_folder_is_named_and_not_passed_over(corpus, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read folder .*corpus/sub/deep: Permission denied"):
        made(corpus, tmp_path / "data")


# Samples


def expected_samples(corpus, output, split_of, seq_len, **settings):
    """The tokens of each sample of each split, unit by unit, in a few lines of Python."""
    samples = {"train": [], "validation": []}
    for unit in plan_dataset([corpus], output, seq_len=seq_len, workers=1, **settings).units:
        joined = {"train": [], "validation": []}
        for piece in unit.pieces:
            for source in read_piece(piece):
                if isinstance(source, Source):
                    joined[split_of[source.text]] += [*source.text, 256]
        for split, tokens in joined.items():
            samples[split] += [tokens[start : start + seq_len] for start in range(0, len(tokens), seq_len)]
    return samples


def test_samples_are_those_of_a_few_lines_of_python(corpus, tmp_path):
    settings = {"validation": 0.3, "unit_bytes": 2000}
    output = tmp_path / "data"
    info = made(corpus, output, **settings, samples_per_shard=7)
    split_of = {document: split for split in info.splits for document in read_documents(output, split)}
    expected = expected_samples(corpus, output, split_of, 64, **settings)
    for split in info.splits:
        assert [sample.tokens.tolist() for sample in read_split(output, split)] == expected[split]
    assert sum(len(sample) < 64 for sample in expected["train"]) > 5  # units end in between


def test_shards_hold_as_many_samples_as_asked_for_and_keys_are_unique(corpus, tmp_path):
    made(corpus, tmp_path / "data", samples_per_shard=7, unit_bytes=4000)
    index = DatasetIndex.open(tmp_path / "data", "train/*.tar", progress=False)
    assert index.counts.max() == 7
    assert (index.counts < 7).sum() <= len(plan_dataset([corpus], tmp_path, seq_len=64, unit_bytes=4000).units)
    keys = [index.name(number).rsplit(maxsplit=1)[1] for number in range(index.num_samples)]
    assert keys == sorted(set(keys))


def test_document_ids_change_exactly_after_end_tokens(corpus, tmp_path):
    output = tmp_path / "data"
    info = made(corpus, output, document_ids=True, unit_bytes=5000, seq_len=256)
    assert info.document_field == "documents.npy"
    samples = read_split(output, "train")
    for sample in samples:
        ends = (sample.tokens == 256).astype(int)
        assert sample.documents.tolist() == [0, *np.cumsum(ends[:-1])]
    assert max(sample.documents[-1] for sample in samples) > 1
    assert sum(not sample.documents.any() for sample in samples) > 5  # a document of many samples


def test_without_document_ids_there_is_no_such_field(corpus, tmp_path):
    assert made(corpus, tmp_path / "data").document_field is None
    with pytest.raises(DataError, match=r"no field 'documents.npy'"):
        DatasetIndex.open(tmp_path / "data", "train/*.tar", ["documents.npy"], progress=False)


def test_one_document_per_sample(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "x" * length}) + "\n" for length in (1, 7, 8, 16, 3)))
    info = made(tmp_path / "a.jsonl", tmp_path / "data", packed=False, seq_len=8, document_ids=True)
    samples = read_split(tmp_path / "data", "train")
    assert [len(sample.tokens) for sample in samples] == [2, 8, 8, 1, 8, 8, 1, 4]
    assert all((sample.documents == 0).all() for sample in samples)
    assert (info.splits["train"].documents, info.splits["train"].samples) == (5, 8)
    assert read_documents(tmp_path / "data", "train") == [b"x" * length for length in (1, 7, 8, 16, 3)]


def test_images_keep_their_labels(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 200, (50, 4, 5), dtype=np.uint8), rng.integers(0, 7, 50)
    labels[3] = 7
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    settings = {"tokenizer": None, "vocabulary_size": 200, "packed": False, "seq_len": 20, "validation": 0.3}
    info = made(tmp_path / "images.npz", tmp_path / "data", samples_per_shard=6, **settings)
    assert (info.num_classes, info.vocabulary_size, info.tokenizer, info.end_token) == (8, 200, None, None)
    seen = []
    for split in ("train", "validation"):
        samples = read_split(tmp_path / "data", split)
        assert {sample.tokens.dtype for sample in samples} == {np.dtype(np.uint8)}
        assert info.splits[split].bytes_per_token is None
        seen += [(tuple(sample.tokens.tolist()), sample.label) for sample in samples]
    assert sorted(seen) == sorted((tuple(image.ravel().tolist()), label) for image, label in zip(images, labels))


def test_images_cut_into_several_samples_keep_their_labels_in_each(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(20, dtype=np.int32).reshape(2, 10), y=np.array([4, 0]))
    made(tmp_path / "x.npz", tmp_path / "data", tokenizer=None, vocabulary_size=20, packed=False, seq_len=4)
    samples = read_split(tmp_path / "data", "train")
    assert [sample.tokens.tolist() for sample in samples[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [sample.label for sample in samples] == [4, 4, 4, 0, 0, 0]


def test_labels_are_not_dropped_silently_where_documents_are_joined(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 10), dtype=np.uint8), y=np.array([4, 0]))
    with pytest.raises(DataError, match=r"x\.npz has classes, .* give --one-document-per-sample"):
        made(tmp_path / "x.npz", tmp_path / "data", tokenizer=None, vocabulary_size=20)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"), [(16, np.uint8), (256, np.uint8), (257, np.uint16), (65_537, np.uint32)]
)
def test_tokens_of_no_tokenizer_are_joined_as_they_are(tmp_path, vocabulary_size, dtype):
    rows = np.random.default_rng(0).integers(0, 16, (9, 10))
    rows[0, 0] = vocabulary_size - 1
    np.save(tmp_path / "a.npy", rows[:4].astype(">i8"))
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as writer:
        for number, row in enumerate(rows[4:]):
            writer.write({"__key__": f"{number}", "tokens.npy": row.astype(np.int32)})
    info = made(tmp_path, tmp_path / "data", tokenizer=None, vocabulary_size=vocabulary_size, seq_len=7)
    samples = read_split(tmp_path / "data", "train")
    assert np.concatenate([sample.tokens for sample in samples]).tolist() == rows.ravel().tolist()
    assert {sample.tokens.dtype for sample in samples} == {np.dtype(dtype)}
    assert (info.tokenizer, info.end_token, info.vocabulary_size) == (None, None, vocabulary_size)
    assert info.splits["train"] == dataclasses.replace(info.splits["train"], documents=9, tokens=90, bytes=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_outside_the_vocabulary_are_named(tmp_path, workers):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 16]]))
    np.save(tmp_path / "b.npy", np.array([[1, 2], [3, 5]]))
    message = rf"input {tmp_path}/a\.npy: token 16 is outside the vocabulary of 16; give the tokenizer"
    with pytest.raises(DataError, match=message):
        made(tmp_path, tmp_path / "data", tokenizer=None, vocabulary_size=16, workers=workers, unit_bytes=8)
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_text_among_tokens_of_no_tokenizer_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"a\.txt holds text; give a tokenizer instead of a vocabulary size"):
        made(tmp_path, tmp_path / "data", tokenizer=None, vocabulary_size=16)


def test_arrays_are_not_taken_for_bytes(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]]))
    with pytest.raises(UserError, match=r"a\.npy holds tokens; give --vocabulary-size, or the tokenizer"):
        made(tmp_path, tmp_path / "data")


# The validation split


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_equal_documents_never_stand_on_both_sides(tmp_path):
    texts = [f"document {number}" for number in range(60)]
    root = tmp_path / "corpus"
    (root / "files").mkdir(parents=True)
    for number, text in enumerate(texts):
        (root / "files" / f"{number}.txt").write_text(text)
    write_lines(root / "lines.jsonl", texts[::-1])
    (root / "more.jsonl.gz").write_bytes(gzip.compress((root / "lines.jsonl").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), root / "table.parquet")
    made(root, tmp_path / "data", validation=0.4, unit_bytes=300)
    train, validation = (Counter(read_documents(tmp_path / "data", split)) for split in ("train", "validation"))
    assert not train.keys() & validation.keys()
    assert set((train | validation).values()) == {4}
    assert len(train | validation) == 60


def test_equal_tokens_of_another_type_stand_on_the_same_side(tmp_path):
    rows = np.random.default_rng(0).integers(0, 250, (40, 6))
    for dtype in ("u1", "<i8", ">u4"):
        np.save(tmp_path / f"{dtype[-2:]}.npy", rows.astype(dtype))
    made(tmp_path, tmp_path / "data", tokenizer=None, vocabulary_size=250, packed=False, validation=0.4)
    sides = [
        {tuple(sample.tokens.tolist()) for sample in read_split(tmp_path / "data", s)} for s in ("train", "validation")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40


def test_the_fraction_is_about_right_and_a_larger_one_holds_the_smaller(tmp_path):
    write_lines(tmp_path / "a.jsonl", [f"document {number}" for number in range(3000)])
    held_out = set()
    for fraction in (0.02, 0.1, 0.5):
        info = made(tmp_path / "a.jsonl", tmp_path / str(fraction), validation=fraction)
        documents = set(read_documents(tmp_path / str(fraction), "validation"))
        assert info.splits["validation"].documents == len(documents)
        assert len(documents) / 3000 == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / 3000) ** 0.5)
        assert held_out < documents
        held_out = documents


def test_the_split_depends_neither_on_the_order_nor_on_other_documents(tmp_path):
    for name in "abc":
        write_lines(tmp_path / f"{name}.jsonl", [f"{name}{number}" for number in range(100)])
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    sides = {}
    for name, inputs in {"forth": files, "back": files[::-1], "more": [*files, tmp_path / "c.jsonl"]}.items():
        made(inputs, tmp_path / name, validation=0.3, unit_bytes=200 if name == "back" else None)
        documents = read_documents(tmp_path / name, "validation")
        sides[name] = {document for document in documents if not document.startswith(b"c")}
    assert sides["forth"] == sides["back"] == sides["more"]
    assert 30 < len(sides["forth"]) < 90


# The output


def test_existing_data_is_replaced_only_when_asked(corpus, tmp_path):
    output = tmp_path / "data"
    made(corpus, output, seq_len=32, validation=0.3, samples_per_shard=10)
    before = tree(output)
    with pytest.raises(UserError, match=r"already holds a data set; .* --overwrite"):
        made(corpus, output)
    with pytest.raises(DataError, match="does not exist"):
        made(tmp_path / "nowhere", output, overwrite=True)
    assert tree(output) == before
    (output / "notes.txt").write_text("mine")
    made(corpus, output, overwrite=True)
    made(corpus, tmp_path / "fresh")
    assert tree(output) == {**tree(tmp_path / "fresh"), "notes.txt": hashlib.sha256(b"mine").hexdigest()}
    assert len(list((output / "train").iterdir())) == len(list((tmp_path / "fresh" / "train").iterdir()))


def test_shards_without_dataset_json_are_not_mixed_in(corpus, tmp_path):
    output = tmp_path / "data"
    made(corpus, output)
    (output / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"holds shards but no dataset\.json"):
        made(corpus, output)
    made(corpus, output, overwrite=True)
    made(corpus, tmp_path / "fresh")
    assert tree(output) == tree(tmp_path / "fresh")


def test_the_remains_of_runs_with_other_settings_are_cleared(corpus, tmp_path):
    output = tmp_path / "data"
    for remains in (".prepare", ".prepare-1234/unit-000000/train", ".prepare-5678.done/unit-000000"):
        (output / remains).mkdir(parents=True)
    (output / ".prepare-1234" / "publishing").touch()
    (output / ".dataset.json.0123456789abcdef0123456789abcdef").write_text("{")
    (output / ".prepare").rmdir()
    made(corpus, output)
    made(corpus, tmp_path / "fresh")
    assert tree(output) == tree(tmp_path / "fresh")
    assert sorted(path.name for path in output.iterdir()) == ["dataset.json", "train"]


def test_a_data_set_is_made_again_where_a_killed_run_could_not_clear_all_of_its_own(corpus, tmp_path):
    output = tmp_path / "data"
    name = f".prepare-{plan_dataset([corpus], output, seq_len=64, validation=0).fingerprint}.done"
    made(corpus, output)
    before = tree(output)
    (output / name / "unit-000000").mkdir(parents=True)
    made(corpus, output, overwrite=True)
    assert tree(output) == before
    assert not (output / name).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 1}, "seq_len is 1; give at least 2"),
        ({"validation": 1.0}, r"validation is 1\.0; give a fraction"),
        ({"validation": -0.1}, r"validation is -0\.1; give a fraction"),
        ({"validation": float("nan")}, r"validation is nan; give a fraction"),
        ({"samples_per_shard": 0}, "samples_per_shard is 0"),
        ({"unit_bytes": 0}, "unit_bytes is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"tokenizer": None}, "give a tokenizer, or for input that is tokens of no tokenizer a vocabulary size"),
        ({"vocabulary_size": 300}, "give a tokenizer, or for input that is tokens of no tokenizer a vocabulary size"),
        ({"tokenizer": None, "vocabulary_size": 0}, "vocabulary_size is 0; give at least 1"),
        ({"tokenizer": None, "vocabulary_size": -5}, "vocabulary_size is -5; give at least 1"),
        ({"include": "*.nothing"}, "no file to read in .*corpus; check the paths and the include"),
        ({"include": "empty.txt"}, "no document in the inputs: all are empty or binary"),
        ({"validation": 1e-9}, "none of the 65 documents fell into the validation split"),
        ({"validation": 1 - 1e-9}, "all 65 documents fell into the validation split; lower"),
    ],
)
def test_wrong_arguments_are_named(corpus, tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        made(corpus, tmp_path / "data", **settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_unwritable_output_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "data", tmp_path / "file"):
        with pytest.raises(DataError, match=rf"cannot write {output}: Not a directory"):
            made(corpus, output)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(corpus, tmp_path, monkeypatch):
    fsync, left = os.fsync, 9

    def full(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"cannot write .*: No space left on device"):
            made(corpus, tmp_path / "data", unit_bytes=2000)
    assert list((tmp_path / "data").glob(".prepare-*/unit-*"))
    made(corpus, tmp_path / "data", unit_bytes=2000)
    made(corpus, tmp_path / "fresh", unit_bytes=2000)
    assert tree(tmp_path / "data") == tree(tmp_path / "fresh")


def test_missing_or_damaged_dataset_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*dataset\.json: No such file.*launcher/prepare\.py"):
        DatasetInfo.load(tmp_path)
    for content in ("{", "[]", '{"splits": {}}', '{"splits": {"train": {"rows": 3}}}'):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=r"dataset\.json is damaged"):
            DatasetInfo.load(tmp_path)


# Tokenizers


def write_tokenizer(path, end_token="</s>"):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([end_token])
    tokenizer.save(str(path))
    return str(path)


def decoded(output):
    tokenizer = load_tokenizer(DatasetInfo.load(output).tokenizer, output)
    return tokenizer.decode(np.concatenate([sample.tokens for sample in read_split(output, "train")]))


def test_hugging_face_tokenizer_is_kept_with_the_data(tmp_path):
    (tmp_path / "a.txt").write_text("häuser")
    spec = write_tokenizer(tmp_path / "t.json")
    info = made(tmp_path / "a.txt", tmp_path / "data", tokenizer=spec, seq_len=4)
    assert (info.tokenizer, info.vocabulary_size, info.end_token) == ("tokenizer.json", 257, 256)
    assert decoded(tmp_path / "data") == "häuser\n<|end|>\n"
    made(tmp_path / "a.txt", tmp_path / "data", overwrite=True)
    assert not (tmp_path / "data" / "tokenizer.json").exists()


def test_arrays_of_tokens_of_a_tokenizer_get_its_end_token_unless_they_have_it(tmp_path):
    spec = write_tokenizer(tmp_path / "t.json")
    np.save(tmp_path / "a.npy", np.array([[7, 8], [9, 256]]))
    made(tmp_path / "a.npy", tmp_path / "data", tokenizer=spec)
    assert read_split(tmp_path / "data", "train")[0].tokens.tolist() == [7, 8, 256, 9, 256]
    np.save(tmp_path / "a.npy", np.array([[7, 257]]))
    with pytest.raises(DataError, match="token 257 is outside the vocabulary of 257"):
        made(tmp_path / "a.npy", tmp_path / "more", tokenizer=spec)


def test_a_tokenizer_in_a_folder_of_text_is_no_document(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("abc")
    spec = write_tokenizer(root / "t.json")
    assert made(root, tmp_path / "data", tokenizer=spec).splits["train"].documents == 1


def test_the_tokenizer_of_a_data_set_that_is_replaced_survives_a_kill(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc")
    made(tmp_path / "a.txt", tmp_path / "data", tokenizer=write_tokenizer(tmp_path / "t.json"))
    own = str(tmp_path / "data" / "tokenizer.json")

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("nar_scale.data.preparation.publish._move", killed)
        with pytest.raises(Killed):
            made(tmp_path / "a.txt", tmp_path / "data", tokenizer=own, seq_len=4, overwrite=True)
    made(tmp_path / "a.txt", tmp_path / "data", tokenizer=own, seq_len=4, overwrite=True)
    assert decoded(tmp_path / "data") == "abc\n<|end|>\n"


def test_a_tokenizer_that_is_saved_over_itself_survives_a_kill(tmp_path):
    path = Path(write_tokenizer(tmp_path / "tokenizer.json"))
    before = path.read_bytes()
    process = os.fork()
    if process == 0:
        try:
            tokenizer = load_tokenizer(path)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # dies in the middle of writing
            tokenizer.save(tmp_path)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGXFSZ
    assert path.read_bytes() == before
    (tmp_path / "a.txt").write_text("abc")
    made(tmp_path / "a.txt", tmp_path, tokenizer=str(path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "dataset.json", "tokenizer.json", "train"]


# The command


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("prepare_launcher", ROOT / "launcher" / "prepare.py")
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    return launcher


def test_launcher(launcher, corpus, tmp_path, capsys):
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "data"), "--seq-len", "64", "--validation", "0.3"]
    assert launcher.main(arguments) == 0
    printed = capsys.readouterr()
    assert re.search(r"^train: \d+ documents, \d+ samples, [\d,]+ tokens, 1 shards$", printed.out, re.M)
    assert "skipped: 1 hidden, 1 binary, 1 empty" in printed.out
    assert re.search(rf"^wrote {tmp_path}/data: 0\.0 MB of text in [\d.]+ s, [\d.]+ MB/s$", printed.out, re.M)
    assert printed.err == ""
    assert launcher.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("prepare: error: ")
    assert printed.err.count("\n") == 1
    assert launcher.main([*arguments, "--overwrite"]) == 0


def test_every_flag_reaches_its_setting(launcher, corpus, tmp_path):
    flags = "--seq-len 32 --one-document-per-sample --document-ids --validation 0.4 --include *.txt --exclude sub"
    flags += " --samples-per-shard 5 --unit-bytes 1000 --workers 1"
    assert launcher.main(["--input", str(corpus), "--output", str(tmp_path / "flags"), *flags.split()]) == 0
    made(
        corpus,
        tmp_path / "settings",
        seq_len=32,
        packed=False,
        document_ids=True,
        validation=0.4,
        include="*.txt",
        exclude=["sub"],
        samples_per_shard=5,
        unit_bytes=1000,
    )
    assert tree(tmp_path / "flags") == tree(tmp_path / "settings")


def test_parts_and_merge_by_command(launcher, corpus, tmp_path, capsys):
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "data"), "--seq-len", "64", "--unit-bytes", "2000"]
    arguments += ["--validation", "0", "--workers", "1"]
    assert launcher.main([*arguments, "--part", "2/2"]) == 0
    assert re.search(r"^part 2/2: (\d+) of \d+ units done in .*data$", capsys.readouterr().out)
    assert launcher.main([*arguments, "--merge"]) == 2
    assert re.fullmatch(
        r"prepare: error: \d+ of \d+ units are missing in .*data \(1, 3, .*\); run the parts that have not finished "
        r"with the same inputs and settings, then --merge again\n",
        capsys.readouterr().err,
    )
    assert launcher.main([*arguments, "--part", "1/2"]) == 0
    assert launcher.main([*arguments, "--merge"]) == 0
    assert "train: 65 documents" in capsys.readouterr().out
    made(corpus, tmp_path / "fresh", unit_bytes=2000)
    assert tree(tmp_path / "data") == tree(tmp_path / "fresh")
    for flag in (["--merge"], ["--part", "1/2"]):
        assert launcher.main([*arguments, *flag]) == 2
        assert "already holds a data set" in capsys.readouterr().err


@pytest.fixture
def damaged(tmp_path):
    """Inputs that cannot be used, each in its own way."""
    root = tmp_path / "damaged"
    root.mkdir()
    (root / "bad.jsonl").write_text('{"text": "one"}\n{"text": "two"\n')
    (root / "nokey.jsonl").write_text('{"body": "one"}\n')
    (root / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(4000))[:-100])
    (root / "bad.parquet").write_bytes(b"PAR1 no")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), root / "nocolumn.parquet")
    (root / "bad.tar").write_bytes(b"x" * 2000)
    (root / "bad.npy").write_bytes(b"x" * 2000)
    np.save(root / "floats.npy", np.zeros((2, 3)))
    np.save(root / "tokens.npy", np.full((2, 3), 99))
    np.savez(root / "labels.npz", x=np.zeros((2, 3), dtype=int), y=np.zeros(2, dtype=int))
    (root / "good.txt").write_text("good")
    (root / "tokenizer.json").write_text("{}")
    return root


ERRORS = {
    "--input {0}/nowhere": "nowhere does not exist",
    "--input {0}/good.txt --include": None,
    "--input {0} --include *.nothing": "no file to read",
    "--input {0}/bad.jsonl": "line at byte 16: not valid JSON",
    "--input {0}/bad.jsonl {0}/good.txt --workers 2 --unit-bytes 5": "line at byte 16: not valid JSON",
    "--input {0}/nokey.jsonl": "no key 'text', only 'body'",
    "--input {0}/cut.txt.gz": "is truncated or damaged",
    "--input {0}/bad.parquet": "is truncated or damaged",
    "--input {0}/nocolumn.parquet": "no column 'text', only 'body'",
    "--input {0}/bad.tar": "is truncated, damaged or not an uncompressed tar",
    "--input {0}/bad.npy --vocabulary-size 9": "is truncated or damaged",
    "--input {0}/floats.npy --vocabulary-size 9": "holds float64, not integer tokens",
    "--input {0}/tokens.npy --vocabulary-size 9": "token 99 is outside the vocabulary of 9",
    "--input {0}/tokens.npy": "holds tokens; give --vocabulary-size",
    "--input {0}/labels.npz --vocabulary-size 9": "give --one-document-per-sample",
    "--input {0}/good.txt --vocabulary-size 9": "holds text; give a tokenizer",
    "--input {0}/good.txt --vocabulary-size 0": "vocabulary_size is 0",
    "--input {0}/good.txt --vocabulary-size 9 --tokenizer byte": "give a tokenizer, or",
    "--input {0}/good.txt --tokenizer {0}/nowhere.json": "cannot read tokenizer",
    "--input {0}/good.txt --tokenizer {0}/tokenizer.json": "is not a Hugging Face tokenizer.json",
    "--input {0}/good.txt --tokenizer {0}/new.json --train-tokenizer 256": "a vocabulary of 256 is too small",
    "--input {0}/good.txt --train-tokenizer 300": None,
    "--input {0}/good.txt --part 3/2": "part is 3/2; give I/N with I from 1 to N",
    "--input {0}/good.txt --part 0/2": "part is 0/2; give I/N with I from 1 to N",
    "--input {0}/good.txt --part x": None,
    "--input {0}/good.txt --part 1": None,
    "--input {0}/good.txt --part 1/2 --merge": None,
    "--input {0}/good.txt --merge": "1 of 1 units are missing",
    "--input {0}/good.txt --validation 1.5": "validation is 1.5",
    "--input {0}/good.txt --validation x": None,
    "--input {0}/good.txt --workers 0": "workers is 0",
    "--input {0}/good.txt --output {0}/good.txt": "Not a directory",
    "--input {0}/good.txt --output {0}/good.txt --overwrite": "Not a directory",
    "--input {0}/good.txt --seq-len 1": "seq_len is 1",
    "--input {0}/good.txt --inspect {0}": None,
    "--inspect {0}/nowhere": "nowhere",
    "--verify {0}/nowhere": "nowhere",
    "--verify https://host/web": "https://host/web is remote; only what lies on a local path is verified",
    "--index {0}/bad.tar": "bad.tar is truncated, damaged or not an uncompressed tar (bad checksum at byte 0); copy",
    "--index {0}/cut.txt.gz": "cut.txt.gz is compressed",
    "--index {0}/good.txt": "good.txt is truncated, damaged or not an uncompressed tar",
    "--index {0}/nowhere": "no shard {0}/nowhere in .",
    "--index {0}/d*": "no shard {0}/d* in .",
    "--index {0} --workers 0": "workers is 0",
    "--index {0} --output {0}/out": None,
    "--inspect {0} --overwrite": None,
    "--inspect {0} --cache-directory {0} --cache-gib nan": "a cache of nan GiB",
    "--index {0} --cache-directory {0} --cache-gib inf": "a cache of inf GiB",
    "--index {0} --cache-directory {0} --cache-gib 0": "a cache of 0.0 GiB",
    "--index {0} --cache-directory {0} --cache-gib -1": "a cache of -1.0 GiB",
    "": None,
}


@pytest.mark.parametrize("line", ERRORS)
def test_a_wrong_command_is_one_line_and_status_2(launcher, damaged, tmp_path, capsys, line):
    arguments = line.format(damaged).split()
    if "--input" in arguments:
        arguments = [
            "--seq-len",
            "8",
            "--validation",
            "0",
            "--workers",
            "1",
            "--output",
            f"{tmp_path}/data",
            *arguments,
        ]
    before = tree(tmp_path)
    if ERRORS[line] is None:  # argparse tells the usage as well
        with pytest.raises(SystemExit) as ended:
            launcher.main(arguments)
        status = ended.value.code
    else:
        status = launcher.main(arguments)
    printed = capsys.readouterr()
    *usage, message = printed.err.splitlines()
    assert status == 2
    assert printed.out == ""
    assert message.startswith("prepare: error: ")
    assert (ERRORS[line] or "").format(damaged) in message
    assert (usage == []) == (ERRORS[line] is not None)
    assert {name: digest for name, digest in tree(tmp_path).items() if "/.prepare-" not in name} == before


def test_damaged_shards_do_not_keep_others_from_their_indices(launcher, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "x.tar"  # a folder, whatever its name
    folder.mkdir()
    for number in range(3):
        write_samples(folder / f"{number}.tar", [np.arange(4)] * 3)
    for number in (0, 1):
        os.truncate(folder / f"{number}.tar", 2000)
    monkeypatch.setattr("nar_scale.data.shards.dataset_index.available_cores", None)  # all cores are not asked for
    assert launcher.main(["--index", str(folder), "", str(folder / "2.tar"), "--workers", "1"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{folder}: 5 samples in 3 shards, 2 damaged",
        f"{folder}/2.tar: 3 samples in 1 shards, all indexed",
    ]
    assert [line.partition(" is ")[0] for line in said.err.splitlines()] == [
        f"prepare: error: shard {folder}/0.tar",
        f"prepare: error: shard {folder}/1.tar",
        "prepare: error: the name of a folder",
    ]
    assert (folder / "2.tar.index").exists()
    monkeypatch.setattr(launcher, "MAX_FAULTS", 1)
    assert launcher.main(["--index", str(folder), "--workers", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["prepare: error: 1 more are damaged or not there"]


def test_a_reader_that_has_seen_enough_is_no_error(launcher, tmp_path, capfd, monkeypatch):
    write_samples(tmp_path / "a.tar", [np.arange(4)] * 3)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert launcher.main(["--inspect", str(tmp_path)]) == 0
    assert capfd.readouterr().err == ""


def test_a_wrong_command_has_no_traceback(damaged, tmp_path):
    command = [sys.executable, ROOT / "launcher" / "prepare.py", "--input", damaged / "bad.jsonl", damaged / "good.txt"]
    command += ["--output", tmp_path / "data", "--seq-len", "8", "--workers", "2", "--unit-bytes", "9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"prepare: error: input .*bad\.jsonl, line at byte 16: not valid JSON .*\n", done.stderr)


def test_a_terminal_sees_throughput_and_time_left(corpus, tmp_path, monkeypatch):
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with open(end, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        made(corpus, tmp_path / "data", unit_bytes=2000, progress=True)
        made(corpus, tmp_path / "silent", progress=False)
        stream.flush()
        shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert len(re.findall(r"prepare: 100%\|█+\| ([\d.]+k)/\1 \[00:\d\d<00:00, [\d.]+[kM]?B/s\]", shown)) == 1
    assert shown.count("100%") == 1


def test_a_file_that_is_no_terminal_sees_nothing(corpus, tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    made(corpus, tmp_path / "data", progress=True)
    assert stream.getvalue() == ""


def test_importing_the_room_is_light():
    check = (
        "import sys, nar_scale.data; print([m for m in ('webdataset', 'deepspeed', 'tensorboard') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_a_huge_document_takes_little_more_memory_than_itself_and_its_tokens(tmp_path):
    size = 1 << 24
    (tmp_path / "huge.txt").write_bytes(b"To be, or not to be\n" * (size // 20))
    tracemalloc.start()
    try:
        prepare(
            [tmp_path / "huge.txt"],
            tmp_path / "out",
            workers=1,
            seq_len=8192,
            validation=0.0,
            samples_per_shard=64,
        )
        assert tracemalloc.get_traced_memory()[1] < 4 * size  # 1 for the text, 2 for the tokens
    finally:
        tracemalloc.stop()
