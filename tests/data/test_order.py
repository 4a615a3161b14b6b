import pickle

import numpy as np
import pytest

from nar_scale.data import SampleOrder
from nar_scale.data.order import permute
from nar_scale.errors import DataError

COUNTS = [
    [1],
    [7],
    [1, 1, 1, 1, 1],
    [5, 1, 17, 2, 9, 30, 1],
    [0, 3, 0, 0, 4, 0],
    [100, 300, 1, 7, 64, 65, 63, 2, 2, 2, 1000],
]


def epoch_of(order, epoch):
    epochs, ids = order.locate(np.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples))
    assert set(epochs.tolist()) == {epoch}
    return ids


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("window_shards", [1, 2, 3, 8, 100])
def test_every_epoch_holds_every_sample_once(counts, window_shards):
    order = SampleOrder(np.array(counts), seed=3, window_shards=window_shards)
    for epoch in (0, 1, 2, 10**9):
        assert sorted(epoch_of(order, epoch)) == list(range(sum(counts)))


def test_epochs_seeds_and_windows_differ():
    counts = np.array([50, 60, 70, 80])
    orders = [
        epoch_of(SampleOrder(counts, 0, 2), 0),
        epoch_of(SampleOrder(counts, 0, 2), 1),
        epoch_of(SampleOrder(counts, 1, 2), 0),
        epoch_of(SampleOrder(counts, 0, 3), 0),
        np.arange(260),
    ]
    assert len({ids.tobytes() for ids in orders}) == len(orders)


def test_a_position_is_found_alone_as_in_company():
    order = SampleOrder(np.array(COUNTS[-1]), seed=5, window_shards=3)
    positions = np.random.default_rng(0).integers(0, 10 * order.num_samples, 500)
    epochs, ids = order.locate(positions)
    alone = [order.locate(positions[i : i + 1]) for i in range(len(positions))]
    assert epochs.tolist() == [int(epoch[0]) for epoch, _ in alone]
    assert ids.tolist() == [int(sample[0]) for _, sample in alone]


def test_a_window_reads_from_its_shards_alone():
    counts = np.full(20, 10)
    ids = epoch_of(SampleOrder(counts, seed=1, window_shards=4), 0)
    windows = (ids // 10).reshape(5, 40)
    assert [len(set(window)) for window in windows.tolist()] == [4] * 5
    assert windows[0].tolist() != sorted(windows[0].tolist())


def test_the_order_never_changes():
    epochs, ids = SampleOrder(np.array([3, 1, 4, 2]), seed=42, window_shards=2).locate(np.arange(22))
    assert epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 2
    assert ids.tolist() == [1, 3, 0, 2, 7, 5, 9, 8, 4, 6, 5, 4, 7, 3, 6, 9, 1, 0, 8, 2, 6, 5]
    _, far = SampleOrder(np.array([1000, 500, 250]), seed=-1).locate(np.array([0, 10**6, 10**12, 10**15]))
    assert far.tolist() == [1511, 756, 990, 569]


def test_permutations_look_random():
    # Where index 0 goes under 6000 keys: uniform over 6 values within 5 standard deviations (29 each).
    keys = np.arange(6000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    zeros, sizes = np.zeros(6000, dtype=np.int64), np.full(6000, 6, dtype=np.int64)
    hits = np.bincount(permute(zeros, sizes, keys), minlength=6)
    assert hits.sum() == 6000
    assert abs(hits - 1000).max() < 5 * 29
    # Neighbours do not stay neighbours: by chance 2 of the 10000 differences are +1 or -1.
    ids = epoch_of(SampleOrder(np.array([10000]), seed=0), 0)
    assert (abs(np.diff(ids)) == 1).sum() < 20


def test_order_survives_pickling():
    order = SampleOrder(np.array([3, 1, 4, 2]), seed=42, window_shards=2)
    positions = np.arange(22)
    assert pickle.loads(pickle.dumps(order)).locate(positions)[1].tolist() == order.locate(positions)[1].tolist()


def test_nothing_to_order_is_refused():
    with pytest.raises(DataError, match="there is no sample"):
        SampleOrder(np.array([0, 0]), seed=0)
    with pytest.raises(ValueError, match="window_shards is 0"):
        SampleOrder(np.array([1]), seed=0, window_shards=0)
