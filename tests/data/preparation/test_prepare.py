"""What a prepared data set holds: documents, samples, splits, tokenizers."""

import dataclasses
import errno
import gzip
import json
import os
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
import zstandard

from nar_scale.data import ByteTokenizer, DatasetIndex, DatasetInfo, plan_dataset, prepare, verify
from nar_scale.data.formats.documents import Document
from nar_scale.data.formats.inputs import read_piece
from nar_scale.errors import DataError, UserError
from tests.data.corpora import count_documents, read_documents, read_split, write_corpus
from tests.data.preparation.preparing import decoded, files, made, write_tokenizer
from tests.errors import refused


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
    assert files(output) == ["dataset.json", "train", "validation"]


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
    compressed = {"1.ndjson.gz": gzip.compress(lines), "2.jsonl.zst": zstd(lines)}
    for name, content in {"0.jsonl": lines, **compressed}.items():
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
    with refused(DataError, corpus / "sub" / "deep", os.strerror(errno.EACCES)):
        made(corpus, tmp_path / "data")


# Samples


def expected_samples(corpus, output, split_of, seq_len, **settings):
    """The tokens of each sample of each split, unit by unit, in a few lines of Python."""
    samples = {"train": [], "validation": []}
    for unit in plan_dataset([corpus], output, seq_len=seq_len, workers=1, **settings).work_items:
        joined = {"train": [], "validation": []}
        for piece in unit.pieces:
            for source in read_piece(piece):
                if isinstance(source, Document):
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
    assert (index.counts < 7).sum() <= len(plan_dataset([corpus], tmp_path, seq_len=64, unit_bytes=4000).work_items)
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
    with refused(DataError, "'documents.npy'"):
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
    with refused(DataError, tmp_path / "x.npz", "--one-document-per-sample"):
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
    with refused(DataError, tmp_path / "a.npy", "token 16", 16):
        made(tmp_path, tmp_path / "data", tokenizer=None, vocabulary_size=16, workers=workers, unit_bytes=8)
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_text_among_tokens_of_no_tokenizer_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with refused(UserError, tmp_path / "a.txt", "tokenizer"):
        made(tmp_path, tmp_path / "data", tokenizer=None, vocabulary_size=16)


def test_arrays_are_not_taken_for_bytes(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]]))
    with refused(UserError, tmp_path / "a.npy", "--vocabulary-size"):
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


# Tokenizers


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
    with refused(DataError, tmp_path / "a.npy", "token 257", 257):
        made(tmp_path / "a.npy", tmp_path / "more", tokenizer=spec)


def test_a_tokenizer_in_a_folder_of_text_is_no_document(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("abc")
    spec = write_tokenizer(root / "t.json")
    assert made(root, tmp_path / "data", tokenizer=spec).splits["train"].documents == 1


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
