from types import SimpleNamespace

import numpy as np
import pytest
import webdataset

from nar_scale.data import DatasetIndex, SampleFormat
from nar_scale.training.data.validation import ValidationData, remark_on_few_samples
from tests.data.shard_files import write_samples
from tests.errors import assert_names


@pytest.fixture
def index(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-0.tar")) as writer:
        for i in range(12):
            tokens = np.array([i, i + 1], dtype=np.uint8) if i != 11 else np.array([200, 1], dtype=np.uint8)
            members = {"tokens.npy": tokens, "cls": i % 10, "documents.npy": np.array([0, 1], dtype=np.uint8)}
            writer.write({"__key__": f"{i:09d}", **members})
    return DatasetIndex.open(tmp_path, "*.tar", progress=False)


def validation_data(index, rank, samples, batch_size=2, **settings):
    world = SimpleNamespace(rank=rank, size=2)
    skip_faults = settings.pop("skip_faults", False)
    return ValidationData(index, SampleFormat(2, 100, **settings), batch_size, samples, None, world, skip_faults)


@pytest.mark.parametrize("more", [{}, {"class_field": "cls", "num_classes": 10}, {"document_field": "documents.npy"}])
def test_every_rank_has_as_many_batches_of_the_same_kind(index, more):
    first, second = (list(validation_data(index, rank, 3, batch_size=1, **more).batches()) for rank in range(2))
    assert len(first) == len(second) == 2
    for batch in (*first, *second):
        assert (batch.classes is not None) == ("class_field" in more)
        assert (batch.documents is not None) == ("document_field" in more)
        if batch.classes is not None:
            assert batch.classes.shape == batch.lengths.shape
        if batch.documents is not None:
            assert batch.documents.shape == batch.tokens.shape
    taken = [batch.sample_ids[batch.lengths > 0] for batch in first + second]
    assert sorted(int(sample) for ids in taken for sample in ids) == [0, 4, 8]  # spread evenly over the 12


def test_a_rank_without_data_has_an_empty_batch(index):
    (batch,) = validation_data(index, 0, 1, class_field="cls", num_classes=10).batches()
    assert (batch.lengths.tolist(), batch.classes.tolist()) == ([0], [0])


def test_a_sample_that_cannot_be_used_is_named_and_left_out(index, caplog):
    batches = [b for rank in range(2) for b in validation_data(index, rank, 12, skip_faults=True).batches()]
    assert [length for b in batches for length in b.lengths.tolist() if length] == [2] * 11
    assert "skipped in evaluation: shard" in caplog.text


def test_too_few_samples_are_named(index, tmp_path):
    write_samples(tmp_path / "many.tar", [np.zeros(2, np.uint8)] * 64)
    few = validation_data(index, 0, 12)
    enough = validation_data(DatasetIndex.open(tmp_path, "many.tar", progress=False), 0, 8)
    assert remark_on_few_samples({}) == remark_on_few_samples({"": enough}) == ""
    assert_names(remark_on_few_samples({"": few}), "validation", 12)
    both = remark_on_few_samples({"code": few, "prose": enough})
    assert_names(both, "12 of code")
    assert "prose" not in both
