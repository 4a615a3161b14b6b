"""Every sample once an epoch, the same global batches however they are shared, and resuming anywhere."""

import random
from itertools import islice

import numpy as np
import pytest

from nar_scale.data import ConcatenatedIndex, DatasetIndex, MixedOrder, SampleFormat, SampleOrder, Stage, TokenStream
from tests.data.shard_files import numbered_index, write_samples

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

GLOBAL_BATCH = 840  # a multiple of 1 to 8
SMALL_BATCH = 24
LAYOUTS = {
    "uneven": [5, 301, 1, 90, 7, 33],
    "one-sample shards": [1] * 40,
    "fewer shards than ranks": [400],
}


def shares(index, order, world_size, global_batch=GLOBAL_BATCH, batches=1, **changes):
    """What the samples of global batches say, int64 [batches, global_batch, 5], put together from all ranks."""
    settings = {"micro_batch_size": global_batch // world_size, "world_size": world_size, "workers": 0, **changes}
    parts = []
    for rank in range(world_size):
        stream = TokenStream(index, order, SampleFormat(2, 1000), global_batch_size=global_batch, rank=rank, **settings)
        count = batches * global_batch // world_size // settings["micro_batch_size"]
        rows = [
            np.column_stack([batch.positions, batch.epochs, batch.sample_ids, batch.tokens])
            for batch in islice(stream, count)
        ]
        parts.append(np.concatenate(rows).reshape(batches, global_batch // world_size, 5))
    return np.concatenate(parts, axis=1)


@pytest.fixture(params=LAYOUTS)
def index(request, tmp_path):
    return numbered_index(tmp_path, LAYOUTS[request.param])


def test_every_sample_once_an_epoch_on_1_to_8_ranks(index):
    order = SampleOrder(index.counts, seed=1, window_shards=3)
    batches = -(-2 * index.num_samples // GLOBAL_BATCH)
    whole = shares(index, order, 1, batches=batches)
    for world_size in range(1, 9):
        assert np.array_equal(shares(index, order, world_size, batches=batches), whole)
    rows = whole.reshape(-1, 5)
    assert rows[:, 0].tolist() == list(range(len(rows)))
    for epoch in range(len(rows) // index.num_samples):
        assert sorted(rows[rows[:, 1] == epoch, 2]) == list(range(index.num_samples))
    assert np.array_equal(rows[:, 3], rows[:, 2])  # the tokens are those of the sample
    first, second = (rows[rows[:, 1] == epoch, 2].tolist() for epoch in (0, 1))
    assert first != second


@pytest.mark.parametrize(("world_size", "workers"), [(r, w) for r in range(1, 9) for w in (1, 2, 3)])
def test_worker_processes_change_nothing(tmp_path, world_size, workers):
    index = numbered_index(tmp_path, [203, 1, 408])
    order = SampleOrder(index.counts, seed=1, window_shards=2)
    micro = GLOBAL_BATCH // world_size // (5 if GLOBAL_BATCH // world_size % 5 == 0 else 3)
    seen = shares(index, order, world_size, workers=workers, micro_batch_size=micro)
    assert np.array_equal(seen, shares(index, order, 1))


@pytest.fixture(params=["one source", "a mixture with a curriculum"])
def source(request, tmp_path):
    index = numbered_index(tmp_path, [150, 1, 99, 230])
    order = SampleOrder(index.counts, seed=3, window_shards=2)
    if request.param == "one source":
        return index, order
    (tmp_path / "other").mkdir()
    write_samples(tmp_path / "other" / "shard-0.tar", [np.array([500 + i, i], dtype=np.uint16) for i in range(111)])
    other = DatasetIndex.open(tmp_path / "other", "*.tar", progress=False)
    stages = [Stage(0, (3, 1)), Stage(500, (1, 1)), Stage(1111, (0, 1)), Stage(1200, (5, 0.1))]
    orders = [order, SampleOrder(other.counts, seed=3, window_shards=2)]
    return ConcatenatedIndex({"one": index, "other": other}), MixedOrder(orders, stages, seed=3)


def test_killed_at_random_and_resumed_in_other_shapes_the_stream_is_the_unbroken_one(source):
    index, order = source
    steps, trials = 60, 100
    unbroken = shares(index, order, 1, SMALL_BATCH, steps)
    generator = random.Random(0)
    divisors = [number for number in range(1, SMALL_BATCH + 1) if SMALL_BATCH % number == 0]
    for trial in range(trials):
        step = generator.randrange(steps)
        while step < steps:
            consumed = min(generator.randint(1, 20), steps - step)
            world_size = generator.choice(divisors[:6])
            micro_batch_size = generator.choice([d for d in divisors if SMALL_BATCH // world_size % d == 0])
            # every twentieth trial reads ahead in processes, and is killed while they hold what was not consumed
            settings = {"workers": 1 + trial % 2, "prefetch": 3} if trial % 20 == 0 and world_size == 1 else {}
            seen = shares(
                index,
                order,
                world_size,
                SMALL_BATCH,
                consumed,
                micro_batch_size=micro_batch_size,
                start_sample=step * SMALL_BATCH,
                **settings,
            )
            assert np.array_equal(seen, unbroken[step : step + consumed])
            step += consumed
