from types import SimpleNamespace

import pytest
from data.test_classes import write_shards

from nar_scale.training.held_out import HeldOut


@pytest.mark.parametrize("with_classes", [False, True])
def test_every_rank_has_as_many_batches_of_the_same_kind(tmp_path, with_classes):
    index, classes = write_shards(tmp_path, "cls", int)
    held_out = [
        HeldOut(index, 2, 100, 2, 5, None, SimpleNamespace(rank=rank, size=2), classes if with_classes else None)
        for rank in range(2)
    ]
    first, second = (list(each.batches()) for each in held_out)
    assert len(first) == len(second) == 2
    for batch in (*first, *second):
        assert (batch.classes is not None) == with_classes
        if with_classes:
            assert batch.classes.shape == batch.lengths.shape
    assert int(sum((batch.lengths > 0).sum() for batch in first + second)) == 5


def test_a_rank_without_data_has_an_empty_batch(tmp_path):
    index, classes = write_shards(tmp_path, "cls", int)
    (batch,) = HeldOut(index, 2, 100, 1, 1, None, SimpleNamespace(rank=0, size=2), classes).batches()
    assert (batch.lengths.tolist(), batch.classes.tolist()) == ([0], [0])
