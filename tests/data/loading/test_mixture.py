"""Several sources as one stream: shares, order, curriculum."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nar_scale.data import ConcatenatedIndex, MixedOrder, SampleOrder, Stage, weights_by_temperature
from nar_scale.data.loading.mixture import MIXTURE_ORDER
from nar_scale.data.loading.quotas import BLOCK_SAMPLES, sum_of_floors
from nar_scale.data.loading.sample_order import hash_words
from nar_scale.errors import ConfigError
from tests.data.shard_files import numbered_index
from tests.errors import refused

SIZES = (700, 300, 5000)


def mixed(*stages, seed=5, sizes=SIZES):
    return MixedOrder(
        [SampleOrder(np.array([size]), seed) for size in sizes], [Stage(*stage) for stage in stages], seed
    )


weights = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 10)), min_size=3, max_size=3).filter(any)
curricula = st.lists(st.tuples(st.integers(1, 3 * BLOCK_SAMPLES), weights), max_size=3, unique_by=lambda s: s[0])


@settings(max_examples=15, deadline=None)
@given(first=weights, later=curricula, start=st.integers(0, 4 * BLOCK_SAMPLES))
def test_sources_get_their_shares_and_come_in_their_own_order(first, later, start):
    stages = [(0, tuple(first)), *((at, tuple(weight)) for at, weight in sorted(later))]
    order = mixed(*stages)
    positions = np.arange(start, start + 3000)
    sources, places = order.locate_sources(positions)
    for source in range(3):
        mine = places[sources == source]
        # each source goes on where it was, without a gap, and what was consumed before is what consumed() says
        assert mine.tolist() == list(range(order.consumed(start)[source], order.consumed(start + 3000)[source]))
        share = 0.0
        for number, (begin, weight) in enumerate(stages):
            end = stages[number + 1][0] if number + 1 < len(stages) else start + 3000
            share += max(min(end, start + 3000) - begin, 0) * weight[source] / sum(weight)
        assert abs(order.consumed(start + 3000)[source] - share) <= 6 * len(stages)
    assert order.consumed(start).sum() == start
    epochs, ids = order.locate(positions)
    for source in range(3):
        chosen = sources == source
        expected = order.orders[source].locate(places[chosen])
        assert np.array_equal(epochs[chosen], expected[0])
        assert np.array_equal(ids[chosen], expected[1] + [0, 700, 1000][source])


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 1000), max_size=5))
def test_positions_may_be_asked_for_in_any_portions(cuts):
    order = mixed((0, (1, 2, 3)), (700, (1, 0, 0)))
    positions = np.arange(BLOCK_SAMPLES + 200, BLOCK_SAMPLES + 1200)
    parts = [order.locate(part) for part in np.split(positions, sorted(cuts))]
    whole = order.locate(positions)
    assert np.array_equal(np.concatenate([ids for _, ids in parts]), whole[1])
    shuffled = np.random.default_rng(0).permutation(positions)
    assert np.array_equal(order.locate(shuffled)[1], whole[1][shuffled - positions[0]])


@settings(max_examples=10, deadline=None)
@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 10)), min_size=1, max_size=9).filter(any),
    block=st.integers(0, 10**7),
)
def test_what_a_rank_computes_of_a_block_is_the_block_laid_out_as_a_whole(weights, block):
    order = mixed((0, tuple(weights)), sizes=(70,) * len(weights))
    start = block * BLOCK_SAMPLES
    before, shares = order.consumed(start), order.consumed(start + BLOCK_SAMPLES) - order.consumed(start)
    sources = np.repeat(np.arange(len(shares)), shares)
    ranks = np.arange(BLOCK_SAMPLES) - np.repeat(np.cumsum(shares) - shares, shares)
    jitter = hash_words(order.seed, MIXTURE_ORDER, 0, block, sources, ranks).astype(np.float64) / 2.0**64
    in_order = np.argsort((ranks + jitter) / shares[sources], kind="stable")
    found, places = order.locate_sources(np.arange(start, start + BLOCK_SAMPLES))
    assert np.array_equal(found, sources[in_order])
    assert np.array_equal(places, before[found] + ranks[in_order])


def test_left_over_samples_are_counted_in_closed_form():
    first, step, divisor = np.array([0, 5, 255, 256, 700]), 157, 256
    terms = (first + step * np.arange(600)[:, None]) // divisor
    expected = np.concatenate([np.zeros_like(first)[None], np.cumsum(terms, axis=0)])
    assert np.array_equal(sum_of_floors(np.arange(601)[:, None], step, first, divisor), expected)


def test_every_prefix_holds_the_shares_to_within_two_samples():
    order = mixed((0, (6, 3, 1)))
    sources, _ = order.locate_sources(np.arange(5000))
    counts = np.cumsum(sources[:, None] == np.arange(3), axis=0)
    wanted = np.arange(1, 5001)[:, None] * [0.6, 0.3, 0.1]
    assert np.abs(counts - wanted).max() < 3
    assert len(np.unique(np.diff(np.flatnonzero(sources == 2)))) > 5  # evenly, yet not in a pattern


@pytest.mark.parametrize("small", [0.3, 2.3e-5, 1e-5, 7e-6, 1e-8])
def test_shares_do_not_drift_however_small_they_are(small):
    order = mixed((0, (1 - small, small, 0)))
    for position in (10**6, 10**9, 10**12 + 12345):
        consumed = order.consumed(position)
        assert consumed.sum() == position
        # within a few samples, and what a double has of digits
        assert abs(consumed[1] - small * position) <= 8 + position * 2**-31


def test_other_seeds_mix_otherwise_and_pickles_alike():
    orders = [mixed((0, (1, 1, 1)), seed=seed).locate_sources(np.arange(300))[0] for seed in (1, 2)]
    assert not np.array_equal(*orders)
    order = mixed((0, (1, 1, 1)), (50, (1, 0, 0)))
    again = pickle.loads(pickle.dumps(order))
    assert np.array_equal(order.locate(np.arange(300))[1], again.locate(np.arange(300))[1])


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ([(5, (1, 1, 1))], "[5]"),
        ([(0, (1, 1, 1)), (9, (1, 1, 1)), (9, (1, 1, 1))], "[0, 9, 9]"),
        ([(0, (0, 0, 0))], "[0, 0, 0]"),
        ([(0, (1, -1, 1))], "[1, -1, 1]"),
        ([(0, (1, float("nan"), 1))], "[1, nan, 1]"),
        ([(0, (1, 1, 1e-11))], "4,294,967,296"),
    ],
)
def test_weights_that_make_no_sense_are_refused(stages, named):
    with refused(ConfigError, named):
        mixed(*stages)


def test_temperature_flattens_sizes():
    assert weights_by_temperature([100, 400], 1) == pytest.approx((0.2, 0.8))
    assert weights_by_temperature([100, 400], 2) == pytest.approx((1 / 3, 2 / 3))
    assert weights_by_temperature([100, 400], 1e9) == pytest.approx((0.5, 0.5))
    assert weights_by_temperature([7] * 10**4, 0.01) == pytest.approx((1e-4,) * 10**4)
    with refused(ConfigError, 0.01, "1,000", "1,000,000,000"):
        weights_by_temperature([1000, 10**9], 0.01)


def test_joined_sources_keep_their_samples_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = numbered_index(tmp_path / "a", [3, 2]), numbered_index(tmp_path / "b", [4])
    joined = ConcatenatedIndex({"one": one, "other": other})
    assert joined.num_samples == 9
    ids = np.array([8, 0, 4, 5])
    assert joined.read_many(ids, "tokens.npy") == [joined.read(sample, "tokens.npy") for sample in ids]
    assert joined.read(5, "tokens.npy") == other.read(0)
    assert joined.read(4, "tokens.npy") == one.read(4)
    assert joined.name(8) == f"source other, shard {tmp_path}/b/shard-000000.tar, sample 000000003"
    assert ConcatenatedIndex({"one": one, "renamed": other}).fingerprint != joined.fingerprint
    assert ConcatenatedIndex({"one": one, "other": other}).fingerprint == joined.fingerprint
