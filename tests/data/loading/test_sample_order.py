"""The order is a permutation in every epoch, found at any position, and shuffles as well as its windows let it.

What shuffling is measured by, on 64 shards of 20 samples (n = 1280) and 150 seeds, against a full permutation:

| statistic                                                | full permutation | windows of k shards                |
|----------------------------------------------------------|------------------|------------------------------------|
| mean absolute correlation of position and sample id      | 0.0223           | 0.1005: as of 64 permuted shards   |
| the same in a window of 160, with the row in a shard     | 0.0633           | 0.0633                             |
| neighbours in the stream from one shard                  | 1.5 %            | 1 / k: 95.1, 47.5, 11.9 (1, 2, 8)  |
| neighbours in the stream that are neighbours on disk     | 1.9 an epoch     | 1.9 a window                       |
| places between two samples of one shard                  | geometric        | the exact law, mean k              |
| places between two visits of a sample, in epochs         | triangular       | triangular on (0, 2)               |
| samples that keep their place from epoch to epoch        | 1 an epoch       | 1 an epoch                         |

So a window is a full permutation of its shards' samples, and what it costs is that 1 / k of neighbours share a shard.
Bounds are four to five standard errors, which an order that shuffles worse by some percent exceeds.
"""

import pickle
from math import comb, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nar_scale.data import SampleOrder
from nar_scale.data.loading.sample_order import hash_words, permute, splitmix64
from nar_scale.errors import DataError
from nar_scale.masking.noise import mix
from tests.errors import refused

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
    assert ids.tolist() == [0, 1, 3, 2, 7, 6, 5, 8, 4, 9, 4, 5, 6, 3, 7, 9, 1, 8, 0, 2, 5, 4]
    _, far = SampleOrder(np.array([1000, 500, 250]), seed=-1).locate(np.array([0, 10**6, 10**12, 10**15]))
    assert far.tolist() == [849, 1473, 528, 1462]


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
    with pytest.raises(DataError):
        SampleOrder(np.array([0, 0]), seed=0)
    with refused(ValueError, "window_shards", 0):
        SampleOrder(np.array([1]), seed=0, window_shards=0)


layouts = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)
seeds = st.integers(-(2**70), 2**70)
windows = st.integers(1, 40)
properties = settings(max_examples=60, deadline=None)


@properties
@given(counts=layouts, seed=seeds, window_shards=windows, epoch=st.integers(0, 10**12))
def test_any_shards_are_permuted_in_any_epoch(counts, seed, window_shards, epoch):
    ids = epoch_of(SampleOrder(np.array(counts), seed, window_shards), epoch)
    assert ids.dtype == np.int64
    assert sorted(ids) == list(range(sum(counts)))


@properties
@given(counts=layouts, seed=seeds, window_shards=windows, epoch=st.integers(0, 1000))
def test_shards_are_read_window_by_window(counts, seed, window_shards, epoch):
    ids = epoch_of(SampleOrder(np.array(counts), seed, window_shards), epoch)
    shards = np.searchsorted(np.cumsum(counts), ids, side="right")
    first, last = {}, {}
    for place, shard in enumerate(shards.tolist()):
        first.setdefault(shard, place)
        last[shard] = place
    for place in range(len(ids)):  # shards that have begun and not ended are held open
        assert sum(first[shard] <= place <= last[shard] for shard in first) <= window_shards


@properties
@given(
    counts=layouts,
    seed=seeds,
    window_shards=windows,
    places=st.lists(st.integers(0, 2**62), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_positions_may_be_asked_for_in_any_portions_and_order(counts, seed, window_shards, places, cuts):
    positions = np.array(places + places[:3])
    order = SampleOrder(np.array(counts), seed, window_shards)
    epochs, ids = order.locate(positions)
    again = pickle.loads(pickle.dumps(order))
    parts = [again.locate(part) for part in np.split(positions, sorted(cuts))]
    assert np.array_equal(np.concatenate([part for part, _ in parts]), epochs)
    assert np.array_equal(np.concatenate([part for _, part in parts]), ids)
    assert np.array_equal(order.locate(positions[::-1])[1][::-1], ids)
    assert np.array_equal(epochs, positions // sum(counts))
    assert positions.tolist() == places + places[:3]  # left as they were


@properties
@given(
    counts=st.lists(st.integers(10, 40), min_size=4, max_size=20),
    seed=st.integers(0, 2**64 - 2),
    window_shards=windows,
    epoch=st.integers(0, 10**9),
)
def test_any_two_epochs_and_any_two_seeds_differ(counts, seed, window_shards, epoch):
    order, other = (SampleOrder(np.array(counts), each, window_shards) for each in (seed, seed + 1))
    orders = [epoch_of(order, epoch), epoch_of(order, epoch + 1), epoch_of(other, epoch), epoch_of(other, epoch + 1)]
    assert len({ids.tobytes() for ids in orders}) == 4


def test_asking_for_no_position_gives_none():
    epochs, ids = SampleOrder(np.array([3]), seed=0).locate(np.array([], dtype=np.int64))
    assert (epochs.shape, ids.shape) == ((0,), (0,))


@properties
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    permuted = permute(np.arange(size), np.full(size, size), np.array([key], dtype=np.uint64))
    assert np.array_equal(np.sort(permuted), np.arange(size))


@pytest.mark.parametrize("size", [10**6, 999_983, 2**19, 2**19 + 1, 2**20 - 1])
def test_permute_is_a_bijection_of_a_million(size):
    permuted = permute(np.arange(size), np.full(size, size), np.array([size], dtype=np.uint64))
    assert np.array_equal(np.bincount(permuted, minlength=size), np.ones(size))


@properties
@given(size=st.integers(2**20, 2**53), key=st.integers(0, 2**64 - 1), first=st.integers(0, 2**53))
def test_permute_leaves_no_large_range_and_meets_itself_nowhere(size, key, first):
    index = (first + np.arange(500)) % size
    permuted = permute(index, np.full(500, size), np.array([key], dtype=np.uint64))
    assert permuted.min() >= 0
    assert permuted.max() < size
    assert len(np.unique(permuted)) == 500


@pytest.mark.parametrize("window_shards", [1, 7, 1000])
def test_a_million_samples_once_an_epoch_near_and_far(window_shards):
    counts = np.random.default_rng(1).integers(0, 2001, 1000)
    order = SampleOrder(counts, seed=9, window_shards=window_shards)
    for epoch in (0, 2**62 // order.num_samples):
        assert np.array_equal(np.bincount(epoch_of(order, epoch)), np.ones(order.num_samples))


def test_a_million_million_samples_at_the_end_of_int64():
    order = SampleOrder(np.full(10**6, 10**6), seed=4, window_shards=1)
    assert order.num_samples == 10**12
    seen = set()
    for start in (0, 3 * 10**15 + 17 * 10**6, 2**63 // 10**12 * 10**12):  # of a window, in the last case of an epoch
        epochs, ids = order.locate(np.arange(start, start + 10**5))
        assert set(epochs.tolist()) == {start // 10**12}
        (shard,) = set((ids // 10**6).tolist())
        assert len(np.unique(ids)) == 10**5
        seen.add((shard, *ids[:5].tolist()))
    assert len(seen) == 3
    window = order.locate(np.arange(start, start + 10**6))[1]  # a whole one
    assert np.array_equal(np.sort(window), shard * 10**6 + np.arange(10**6))
    epochs, ids = order.locate(np.array([2**63 - 1]))
    assert epochs.tolist() == [(2**63 - 1) // 10**12]
    assert 0 <= ids[0] < 10**12


SHARDS, ROWS, SEEDS = 64, 20, 150
SAMPLES = SHARDS * ROWS
MEAN_OF_ABSOLUTE_NORMAL, ITS_SPREAD = sqrt(2 / np.pi), sqrt(1 - 2 / np.pi)


def epochs_of_seeds(window_shards, epochs=1):
    """Sample ids, int64 [seeds, epochs, samples]."""
    positions = np.arange(epochs * SAMPLES)
    counts = np.full(SHARDS, ROWS)
    ids = [SampleOrder(counts, seed, window_shards).locate(positions)[1] for seed in range(SEEDS)]
    return np.array(ids).reshape(SEEDS, epochs, SAMPLES)


def correlations(rows, values):
    """Of each row with the values: Pearson's of ranks, as both are permutations."""
    rows, values = rows - rows.mean(axis=1, keepdims=True), values - values.mean()
    return (rows @ values) / np.sqrt((rows**2).sum(axis=1) * (values**2).sum())


def assert_correlated_as_permutations(correlation, length):
    # for a permutation of `length` the correlation has variance 1 / (length - 1)
    scaled = np.abs(correlation) * sqrt(length - 1)
    bound = 4 * ITS_SPREAD / sqrt(len(scaled))
    assert abs(scaled.mean() - MEAN_OF_ABSOLUTE_NORMAL) < bound, (scaled.mean(), bound)


@pytest.mark.parametrize(("window_shards", "as_long_as"), [(1, SHARDS), (8, SHARDS), (SHARDS, SAMPLES)])
def test_position_and_sample_id_are_correlated_as_in_a_permutation(window_shards, as_long_as):
    ids = epochs_of_seeds(window_shards)[:, 0]
    assert_correlated_as_permutations(correlations(ids, np.arange(SAMPLES)), as_long_as)


@pytest.mark.parametrize("window_shards", [1, 8, SHARDS])
def test_within_a_window_the_row_in_a_shard_tells_nothing_of_the_position(window_shards):
    size = window_shards * ROWS
    rows = epochs_of_seeds(window_shards).reshape(-1, size) % ROWS
    assert_correlated_as_permutations(correlations(rows, np.arange(size)), size)


@pytest.mark.parametrize("window_shards", [1, 2, 8, SHARDS])
def test_neighbours_come_from_one_shard_as_often_as_a_window_makes_them(window_shards):
    ids = epochs_of_seeds(window_shards)[:, 0]
    windows = SHARDS // window_shards
    shards = ids // ROWS
    for lag in (1, 2, 5):
        same = (shards[:, lag:] == shards[:, :-lag]).sum(axis=1)
        size = window_shards * ROWS
        expected = windows * (size - lag) * (ROWS - 1) / (size - 1)
        # the spread of a count among `windows` permutations, measured; none where a window is a shard
        assert abs(same.mean() - expected) <= 4 * same.std() / sqrt(SEEDS), (lag, same.mean(), expected)
    fraction = (shards[:, 1:] == shards[:, :-1]).mean()
    assert fraction == pytest.approx({1: 0.951, 2: 0.475, 8: 0.119, SHARDS: 0.0149}[window_shards], rel=0.05)


@pytest.mark.parametrize("window_shards", [1, 8, SHARDS])
def test_neighbours_on_disk_do_not_stay_neighbours(window_shards):
    ids = epochs_of_seeds(window_shards)[:, 0]
    together = (np.abs(np.diff(ids)) == 1).sum(axis=1)
    expected = SHARDS // window_shards * 2 * (ROWS - 1) / ROWS
    # neighbours of two shards that follow each other in number count too: at most 2 / ROWS of a window's more
    more = together.mean() - expected
    assert -5 * sqrt(expected / SEEDS) < more < 2 / ROWS + 5 * sqrt(expected / SEEDS)


@pytest.mark.parametrize("size", [3, 8, 20, 32, 100])
def test_small_windows_are_permuted_evenly(size):
    trials = 5000
    index = np.tile(np.arange(size), trials)
    permuted = permute(index, np.full(index.shape, size), np.repeat(hash_words(5, np.arange(trials)), size))
    permuted = permuted.reshape(trials, size)
    neighbours = (np.abs(np.diff(permuted, axis=1)) == 1).sum(axis=1)
    in_place = (permuted == np.arange(size)).sum(axis=1)
    for counts, expected in ((neighbours, 2 * (size - 1) / size), (in_place, 1)):
        assert abs(counts.mean() - expected) < 4 * counts.std() / sqrt(trials)


def test_gaps_between_samples_of_a_shard_follow_the_law_of_a_permutation():
    window_shards, size = 8, 8 * ROWS
    windows = (epochs_of_seeds(window_shards) // ROWS).reshape(-1, size)
    gaps = []
    for shard in range(SHARDS):
        window, place = np.nonzero(windows == shard)
        gaps.append(np.diff(place)[np.diff(window) == 0])
    gaps = np.concatenate(gaps)
    assert len(gaps) == SEEDS * SHARDS * (ROWS - 1)
    law = np.array([comb(size - gap, ROWS - 1) / comb(size, ROWS) for gap in range(1, 41)])
    observed = np.bincount(gaps, minlength=42)[1:41]
    expected = law * len(gaps)
    assert expected[0] > 20_000
    assert (np.abs(observed - expected) < 5 * np.sqrt(expected)).all(), (observed, expected)
    assert gaps.mean() == pytest.approx((size + 1) / (ROWS + 1), rel=0.01)  # 7.7: about the number of shards


@pytest.mark.parametrize(("window_shards", "distance"), [(8, 0.04), (SHARDS, 0.008)])
def test_a_sample_comes_again_after_a_time_as_from_two_permutations(window_shards, distance):
    ids = epochs_of_seeds(window_shards, epochs=2)
    places = np.argsort(ids, axis=2)
    gaps = np.sort((SAMPLES + places[:, 1] - places[:, 0]).ravel() / SAMPLES)  # in epochs
    triangular = np.where(gaps < 1, gaps**2 / 2, 1 - (2 - gaps) ** 2 / 2)
    # Kolmogorov-Smirnov: 1.63 / sqrt(64 shards x 150 seeds) would be 0.017 for shards, 0.0037 for samples
    assert np.abs(triangular - (np.arange(len(gaps)) + 0.5) / len(gaps)).max() < distance / 2
    assert gaps.mean() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("window_shards", [1, 8, SHARDS])
def test_epochs_have_no_more_in_common_than_two_permutations(window_shards):
    ids = epochs_of_seeds(window_shards, epochs=3)
    for one, other in (
        (ids[:, 0], ids[:, 1]),
        (ids[:, 1], ids[:, 2]),
        (ids[:, 0], ids[:, 2]),
        (ids[1:, 0], ids[:-1, 0]),
    ):
        kept = (one == other).sum(axis=1)
        assert abs(kept.mean() - 1) < 5 * max(kept.std(), 1) / sqrt(len(kept)), kept.mean()


@pytest.mark.parametrize("size", [33, 40, 100])
def test_where_two_samples_go_is_uniform_over_pairs(size):
    # chi-squared over size * (size - 1) ordered pairs; fewer samples than about 32 are spread less evenly
    keys = np.arange(200_000, dtype=np.uint64)
    sizes = np.full(len(keys), size)
    first, second = (permute(np.full(len(keys), index), sizes, keys) for index in (0, 1))
    hits = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert not hits.diagonal().any()
    pairs = hits[~np.eye(size, dtype=bool)]
    expected = len(keys) / len(pairs)
    degrees = len(pairs) - 1
    assert abs(((pairs - expected) ** 2 / expected).sum() - degrees) < 5 * sqrt(2 * degrees)


GOLDEN_GAMMA = 0x9E3779B97F4A7C15
# the first outputs for the seed 1234567, from the reference implementation (Vigna, prng.di.unimi.it/splitmix64.c)
SPLITMIX64 = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_hash_is_splitmix64_and_that_of_masks_mixes_alike():
    states = np.array([(1234567 + i * GOLDEN_GAMMA) % 2**64 for i in range(5)], dtype=np.uint64)
    assert splitmix64(states).tolist() == SPLITMIX64
    random = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    with np.errstate(over="ignore"):
        added = torch.from_numpy((random + np.uint64(GOLDEN_GAMMA)).view(np.int64))
    assert np.array_equal(mix(added).numpy().view(np.uint64), splitmix64(random))
