"""Classes travel with their samples, and a wrong one is named."""

import io
from itertools import islice

import numpy as np
import pytest
import torch
import webdataset

from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, TokenStream, sequential_batches
from nar_scale.errors import DataError
from tests.errors import refused

SAMPLES = 12
STREAM_OF_TOKENS = io.BytesIO()
np.save(STREAM_OF_TOKENS, np.array([1, 2]))
TOKENS = STREAM_OF_TOKENS.getvalue()
STREAM = {"global_batch_size": 4, "micro_batch_size": 2, "rank": 0, "world_size": 1}


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


def open_shards(directory, field):
    return DatasetIndex.open(directory, "*.tar", ["tokens.npy", field], progress=False)


def sample_format(field, num_classes=10):
    return SampleFormat(2, 100, class_field=field, num_classes=num_classes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("field", "encode"), [("cls", int), ("label.npy", np.array), ("digit.txt", str)])
def test_each_sample_has_its_class(tmp_path, field, encode, workers):
    index = write_shards(tmp_path, field, encode)
    order = SampleOrder(index.counts, 1, 2)
    batches = list(islice(TokenStream(index, order, sample_format(field), **STREAM, workers=workers), 12))
    assert {batch.classes.dtype for batch in batches} == {torch.int64}
    assert {int(i) for batch in batches for i in batch.sample_ids} == set(range(SAMPLES))
    for batch in batches:
        assert torch.equal(batch.tokens[:, 0], batch.sample_ids)
        assert torch.equal(batch.classes, class_of(batch.sample_ids))


def test_evaluation_sees_classes_too(tmp_path):
    index = write_shards(tmp_path, "cls", int)
    settings = {"batch_size": 5, "world_size": 2}
    batches = [b for rank in (0, 1) for b in sequential_batches(index, sample_format("cls"), rank=rank, **settings)]
    assert torch.cat([batch.classes for batch in batches]).tolist() == [class_of(i) for i in range(SAMPLES)]
    assert next(iter(sequential_batches(index, SampleFormat(2, 100), rank=0, **settings))).classes is None


FAULTS = {
    "word": (b"three", ("'cls'", "data.class_field")),
    "fraction": (b"3.0", ("'cls'", "data.class_field")),
    "empty": (b"", ("'cls'", "data.class_field")),
    "binary": (b"\xff\xfe\n", ("'cls'", "data.class_field")),
    "negative": (b"-1", (-1, "0..9", "objective.num_classes")),
    "large": (b"10", (10, "0..9", "objective.num_classes")),
}


def test_a_bad_class_is_named(tmp_path):
    for number, (content, named) in enumerate(FAULTS.values()):
        directory = tmp_path / str(number)
        directory.mkdir()
        with webdataset.TarWriter(str(directory / "shard-0.tar"), encoder=False) as writer:
            writer.write({"__key__": "the-bad-one", "cls": content, "tokens.npy": TOKENS})
        index = DatasetIndex.open(directory, "*.tar", progress=False)
        with refused(DataError, directory / "shard-0.tar", "the-bad-one", *named):
            sample_format("cls").read(index, 0)


@pytest.mark.parametrize("array", [np.array(1.5), np.array([1, 2])])
def test_an_array_that_is_no_class_is_named(tmp_path, array):
    index = write_shards(tmp_path, "class.npy", lambda _: array)
    with refused(DataError, tmp_path / "shard-0.tar", "000000000", "'class.npy'", array.dtype, array.shape):
        sample_format("class.npy").read(index, 0)


def test_a_sample_without_a_class_is_named(tmp_path):
    write_shards(tmp_path, "cls", int)
    with refused(DataError, tmp_path / "shard-0.tar", "000000000", "'label'", "cls", "tokens.npy"):
        open_shards(tmp_path, "label")
