import multiprocessing
import os
import signal
from itertools import islice

import numpy as np
import pytest
import torch
import webdataset

from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, TokenStream, sequential_batches
from nar_scale.errors import ConfigError, DataError
from tests.data.shard_files import numbered_index, write_samples
from tests.errors import refused

COUNTS = [5, 1, 9, 2, 7]


@pytest.fixture
def index(tmp_path):
    return numbered_index(tmp_path, COUNTS)


def stream(index, seed=7, window_shards=2, sequence_length=3, **changes):
    settings = {
        "global_batch_size": 12,
        "micro_batch_size": 3,
        "rank": 0,
        "world_size": 1,
        "workers": 0,
    }
    order = SampleOrder(index.counts, seed, window_shards)
    return TokenStream(index, order, SampleFormat(sequence_length, 100), **{**settings, **changes})


def global_batches(index, batches, world_size=1, micro_batch_size=3, **changes):
    """Put the micro-batches of all ranks together: an array [batches, 12, columns] of what the samples say."""
    shares = []
    for rank in range(world_size):
        ranked = stream(index, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, **changes)
        micro_batches = list(islice(ranked, batches * 12 // world_size // micro_batch_size))
        columns = [
            torch.cat([b.positions[:, None], b.epochs[:, None], b.sample_ids[:, None], b.tokens, b.lengths[:, None]], 1)
            for b in micro_batches
        ]
        shares.append(torch.cat(columns).reshape(batches, 12 // world_size, -1))
    return torch.cat(shares, dim=1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_sample_once_an_epoch(index, world_size, workers):
    rows = (
        global_batches(index, 6, world_size, micro_batch_size=1, workers=workers).reshape(72, -1).numpy()
    )  # 72 positions: three epochs
    positions, epochs, ids = rows[:, 0], rows[:, 1], rows[:, 2]
    assert positions.tolist() == list(range(72))
    for epoch in range(3):
        assert sorted(ids[epochs == epoch]) == list(range(24))
    assert len({tuple(ids[epochs == epoch]) for epoch in range(3)}) == 3
    assert rows[:, 3:].tolist() == [[i, i + 1, 0, 2] for i in ids]  # tokens, padding and length


def test_fewer_shards_than_ranks(tmp_path):
    rows = global_batches(numbered_index(tmp_path, [7]), 7, world_size=4)
    ids = rows[:, :, 2].flatten().tolist()
    assert [sorted(ids[i : i + 7]) for i in range(0, 84, 7)] == [list(range(7))] * 12


@pytest.mark.parametrize(
    "changes",
    [
        {"world_size": 2, "micro_batch_size": 6},
        {"world_size": 4, "micro_batch_size": 1},
        {"world_size": 3, "micro_batch_size": 2, "workers": 2},
        {"world_size": 12, "micro_batch_size": 1},
        {"micro_batch_size": 12, "workers": 2},
    ],
)
def test_global_batches_do_not_depend_on_how_they_are_shared(index, changes):
    assert torch.equal(global_batches(index, 5, **changes), global_batches(index, 5))


@pytest.mark.parametrize("consumed", [1, 2, 3, 7])
def test_resuming_goes_on_where_it_stopped(index, consumed):
    unbroken = global_batches(index, 10)
    resumed = global_batches(index, 10 - consumed, world_size=2, workers=1, start_sample=12 * consumed)
    assert torch.equal(resumed, unbroken[consumed:])


def test_resuming_far_away_reads_nothing_before(index):
    start = 12 * 10**12
    batch = next(iter(stream(index, start_sample=start)))
    assert batch.positions.tolist() == [start, start + 1, start + 2]
    assert batch.epochs.tolist() == [start // 24] * 3


def test_iterating_again_starts_again(index):
    ranked = stream(index)
    assert torch.equal(next(iter(ranked)).tokens, next(iter(ranked)).tokens)


def test_seeds_and_windows_change_the_order(index):
    orders = [
        global_batches(index, 2, **changes)[:, :, 2].flatten().tolist()
        for changes in ({}, {"seed": 8}, {"window_shards": 5})
    ]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(index, workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(stream(index, workers=workers)))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_outlive_the_signals_of_a_batch_system(index):
    batches = iter(stream(index, workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    for stop_signal in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(worker.pid, stop_signal)
    assert [int(next(batches).positions[0]) for _ in range(20)] == [3 * i for i in range(1, 21)]
    assert worker.is_alive()
    del batches
    worker.join(10)
    assert not worker.is_alive()


def test_a_stream_that_is_closed_has_ended_its_workers(index):
    batches = iter(stream(index, workers=2))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    batches.close()
    assert [worker.exitcode for worker in workers] == [0, 0]  # by themselves; -15 or -9 after seconds if they are left


def tensors(batch):
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]


def test_batch(index):
    batch = next(iter(stream(index)))
    assert {tensor.dtype for tensor in tensors(batch)} == {torch.int64}
    assert batch.tokens.shape == (3, 3)
    assert batch.padded
    assert not next(iter(stream(index, sequence_length=2))).padded
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert moved.padded
    assert moved.tokens.shape == batch.tokens.shape


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ((100, 8, 4), (100, 4, 8, 32, 96, 128)),
        ((8, 8, 4), (8, 4, 32)),
        ((0, 1, 1), (0, 1)),
    ],
)
def test_batch_sizes_that_do_not_divide(index, sizes, named):
    global_batch_size, micro_batch_size, world_size = sizes
    with refused(ConfigError, *named):
        stream(index, global_batch_size=global_batch_size, micro_batch_size=micro_batch_size, world_size=world_size)


@pytest.mark.parametrize("start", [1, 13, -12])
def test_start_inside_a_global_batch(index, start):
    with refused(DataError, start, 12):
        stream(index, start_sample=start)


FAULTS = {
    "outside": (np.array([1, 100]), ("token 100", 100)),
    "negative": (np.array([-1, 1]), ("token -1", 100)),
    "huge": (np.array([2**63 + 1], dtype=np.uint64), (2**63 + 1, 100)),
    "float": (np.array([1.0, 2.0]), ("float64",)),
    "bool": (np.array([True]), ("bool",)),
    "long": (np.arange(4), (4, 3)),
    "empty": (np.array([], dtype=np.int64), ("no token",)),
    "matrix": (np.ones((2, 2), dtype=np.int64), ("(2, 2)",)),
    "scalar": (np.array(3), ("()",)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named(tmp_path, fault, workers):
    sample, named = FAULTS[fault]
    write_samples(tmp_path / "shard-0.tar", [np.array([1, 2])] * 5)
    with webdataset.TarWriter(str(tmp_path / "shard-1.tar")) as writer:
        writer.write({"__key__": "the-bad-one", "tokens.npy": sample})
    index = DatasetIndex.open(tmp_path, "shard-*.tar", progress=False)
    with refused(DataError, tmp_path / "shard-1.tar", "the-bad-one", *named):
        list(islice(stream(index, workers=workers), 4))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("limit", [None, 10, 1, 1000])
def test_sequential_pass(index, world_size, limit):
    count = 24 if limit is None else min(limit, 24)
    expected = [place * 24 // count for place in range(count)]  # spread evenly
    seen, shares, places = [], [], []
    for rank in range(world_size):
        settings = {"batch_size": 4, "limit": limit}
        batches = list(sequential_batches(index, SampleFormat(3, 100), rank=rank, world_size=world_size, **settings))
        assert all(len(batch.sample_ids) == 4 for batch in batches[:-1])
        for batch in batches:
            assert batch.tokens.tolist() == [[i, i + 1, 0] for i in batch.sample_ids.tolist()]
            assert batch.epochs.tolist() == [0] * len(batch.sample_ids)
            places += batch.positions.tolist()
        seen += [i for batch in batches for i in batch.sample_ids.tolist()]
        shares.append(sum(len(batch.sample_ids) for batch in batches))
    assert seen == expected
    assert places == list(range(count))
    assert max(shares) - min(shares) <= 1
