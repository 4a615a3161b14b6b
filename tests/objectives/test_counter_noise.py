"""What the net sees in training is the same on any number of ranks, bit for bit, through the real stream."""

from itertools import islice

import numpy as np
import pytest
import torch

from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, TokenStream
from tests.data.shard_files import write_samples

from .helpers import small_nar

GLOBAL_BATCH_SIZE, N = 8, 12
OPTIONS = {
    "exact": {},
    "bernoulli": {"masking": "bernoulli", "schedule": "cosine"},
    "corrupted": {"no_replace_prob": 0.2, "random_token_prob": 0.2},
    "conditional": {"prefix_length": 2, "condition_drop_prob": 0.5},
}


@pytest.fixture
def index(tmp_path):
    generator = np.random.default_rng(0)
    for shard in range(3):
        samples = [generator.integers(0, 10, size=generator.integers(3, N + 1)).astype(np.uint16) for _ in range(7)]
        write_samples(tmp_path / f"shard-{shard}.tar", samples, first_key=7 * shard)
    return DatasetIndex.open(tmp_path, "shard-*.tar", progress=False)


def seen(index, options, ranks, micro_batch_size, batches=6):
    """The masked global batches of an epoch and more, from all ranks: int64 `[batches, 8, 12]`."""
    wrapper = small_nar(**options).train()
    inputs = []
    wrapper.net.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    shares = []
    for rank in range(ranks):
        stream = TokenStream(
            index,
            SampleOrder(index.counts, seed=3, window_shards=2),
            SampleFormat(N, 10),
            global_batch_size=GLOBAL_BATCH_SIZE,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=ranks,
            workers=0,
        )
        share = GLOBAL_BATCH_SIZE // ranks
        inputs.clear()
        for batch in islice(stream, batches * share // micro_batch_size):
            wrapper.loss_terms(batch, seed=3)
        shares.append(torch.cat(inputs).view(batches, share, N))
    return torch.cat(shares, dim=1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_masks_are_those_of_one_rank_with_the_whole_batch(index, options):
    whole = seen(index, options, ranks=1, micro_batch_size=8)
    assert bool((whole == 10).any())
    assert not torch.equal(whole[0], whole[3])
    for ranks, micro_batch_size in ((1, 1), (1, 4), (2, 4), (2, 2), (2, 1), (4, 2), (4, 1)):
        assert torch.equal(seen(index, options, ranks, micro_batch_size), whole)
