"""Classes travel with their samples, and a wrong one is named."""

from itertools import islice

import numpy as np
import pytest
import torch
import webdataset

from nar_scale.data import ClassReader, DatasetIndex, TokenStream, sequential_batches
from nar_scale.errors import DataError

SAMPLES = 12
STREAM = {
    "sequence_length": 2,
    "vocabulary_size": 100,
    "seed": 1,
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "rank": 0,
    "world_size": 1,
    "window_shards": 2,
}


def class_of(sample):
    return sample * 7 % 10


def write_shards(directory, field, encode):
    """Two shards; sample i has the tokens [i, i + 1] and the class `class_of(i)`."""
    for shard in range(2):
        with webdataset.TarWriter(str(directory / f"shard-{shard}.tar"), encoder=True) as writer:
            for i in range(shard * SAMPLES // 2, (shard + 1) * SAMPLES // 2):
                tokens = np.array([i, i + 1], dtype=np.uint8)
                writer.write({"__key__": f"{i:09d}", "tokens.npy": tokens, field: encode(class_of(i))})
    return open_shards(directory, field)


def open_shards(directory, field, num_classes=10):
    tokens = DatasetIndex.open(directory, "*.tar", progress=False)
    return tokens, ClassReader(DatasetIndex.open(directory, "*.tar", field, progress=False), num_classes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("field", "encode"), [("cls", int), ("label.npy", np.array), ("digit.txt", str)])
def test_each_sample_has_its_class(tmp_path, field, encode, workers):
    index, classes = write_shards(tmp_path, field, encode)
    batches = list(islice(TokenStream(index, **STREAM, classes=classes, workers=workers), 12))
    assert {batch.classes.dtype for batch in batches} == {torch.int64}
    assert {int(i) for batch in batches for i in batch.sample_ids} == set(range(SAMPLES))
    for batch in batches:
        assert torch.equal(batch.tokens[:, 0], batch.sample_ids)
        assert torch.equal(batch.classes, class_of(batch.sample_ids))


def test_evaluation_sees_classes_too(tmp_path):
    index, classes = write_shards(tmp_path, "cls", int)
    settings = {"sequence_length": 2, "vocabulary_size": 100, "batch_size": 5, "world_size": 2}
    batches = [b for rank in (0, 1) for b in sequential_batches(index, rank=rank, **settings, classes=classes)]
    assert torch.cat([batch.classes for batch in batches]).tolist() == [class_of(i) for i in range(SAMPLES)]
    assert next(iter(sequential_batches(index, rank=0, **settings))).classes is None


def test_tokens_and_classes_keep_their_indices_side_by_side(tmp_path):
    write_shards(tmp_path, "cls", int)
    indices = sorted(tmp_path.glob("*.index"))
    assert [path.name for path in indices] == [f"shard-{i}.tar{field}.index" for i in (0, 1) for field in (".cls", "")]
    built = [path.stat().st_mtime_ns for path in indices]
    open_shards(tmp_path, "cls")
    assert [path.stat().st_mtime_ns for path in indices] == built


FAULTS = {
    "word": (b"three", "field 'cls' is not an integer .*; name another data.class_field"),
    "fraction": (b"3.0", "is not an integer"),
    "empty": (b"", "is not an integer"),
    "binary": (b"\xff\xfe\n", "is not an integer"),
    "negative": (b"-1", r"class -1 is outside 0\.\.9; raise objective.num_classes"),
    "large": (b"10", r"class 10 is outside 0\.\.9"),
}


def test_a_bad_class_is_named(tmp_path):
    for number, (content, message) in enumerate(FAULTS.values()):
        directory = tmp_path / str(number)
        directory.mkdir()
        with webdataset.TarWriter(str(directory / "shard-0.tar"), encoder=False) as writer:
            writer.write({"__key__": "the-bad-one", "cls": content})
        reader = ClassReader(DatasetIndex.open(directory, "*.tar", "cls", progress=False), 10)
        with pytest.raises(DataError, match=rf"shard .*shard-0\.tar, sample the-bad-one: .*{message}") as raised:
            reader.read(np.array([0]))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("array", [np.array(1.5), np.array([1, 2])])
def test_an_array_that_is_no_class_is_named(tmp_path, array):
    with pytest.raises(DataError, match=r"sample 000000000: field 'class.npy' is not an integer \(it is"):
        write_shards(tmp_path, "class.npy", lambda _: array)[1].read(np.array([0]))


def test_a_sample_without_a_class_is_named(tmp_path):
    write_shards(tmp_path, "cls", int)
    with pytest.raises(DataError, match=r"shard .*shard-0.tar, sample 000000000: no field 'label', only cls, tokens"):
        open_shards(tmp_path, "label")


def test_classes_of_other_shards_are_refused(tmp_path):
    index, classes = write_shards(tmp_path, "cls", int)
    one = DatasetIndex.open(tmp_path, "shard-0.tar", progress=False)
    with pytest.raises(DataError, match="have changed while they were opened"):
        TokenStream(one, **STREAM, classes=classes)
    assert index.fingerprint == classes.index.fingerprint
