"""Rows of different lengths in one cache: each gives what it gives alone, whatever is dropped and selected."""

import pytest
import torch

from nar_scale.model import Decoder, Encoder, KeyValueCache
from tests.model.helpers import small_net

N = 12
NETS = {
    "rotary": {},
    "learned_positions": {"rotary": False},
    "grouped_and_normed": {"kv_heads": 1, "qk_norm": True},
    "biased": {"qk_bias": True},
    "window": {"window": 4},
}
every_net = pytest.mark.parametrize("options", NETS.values(), ids=NETS)
every_cache = pytest.mark.parametrize("static", [False, True])


def tokens(batch=3, n=N, seed=0):
    return torch.randint(11, (batch, n), generator=torch.Generator().manual_seed(seed))


def gather(rows, start, count):
    """`count` tokens of each row from its own place on, int64 `[batch, count]`."""
    return rows.gather(1, torch.tensor(start)[:, None] + torch.arange(count))


@torch.no_grad()
@every_net
@every_cache
def test_rows_of_different_lengths_are_as_in_a_whole_pass(options, static):
    net, x = small_net(Decoder, **options), tokens()
    expected = net(x)
    cache, lengths = KeyValueCache(N, static), [5, 1, 3]
    first = net(x[:, :5], cache=cache)
    cache.truncate(torch.tensor(lengths))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(first[row, :length], expected[row, :length], rtol=1e-4, atol=1e-4)
    for count in (1, 3, 1):
        further = net(gather(x, lengths, count), cache=cache)
        for row, start in enumerate(lengths):
            torch.testing.assert_close(further[row], expected[row, start : start + count], rtol=1e-4, atol=1e-4)
        lengths = [length + count for length in lengths]
    assert cache.lengths.tolist() == lengths
    assert (cache.longest, cache.aligned) == ((0, False) if static else (10, False))
    assert cache.keys_after(1) == (N if static else 11)


@torch.no_grad()
@every_net
@every_cache
def test_drafts_that_are_dropped_leave_nothing(options, static):
    """As in speculative decoding: wrong tokens are written, and each row keeps a number of its own."""
    net, x = small_net(Decoder, **options), tokens()
    expected = net(x)
    cache, lengths = KeyValueCache(N, static), [4, 4, 4]
    net(x[:, :4], cache=cache)
    for kept in ([2, 0, 1], [1, 3, 2]):
        draft = gather(x, lengths, 3)
        wrong = torch.arange(3) >= torch.tensor(kept)[:, None]
        net(torch.where(wrong, (draft + 5) % 11, draft), cache=cache)
        lengths = [length + more for length, more in zip(lengths, kept)]
        cache.truncate(torch.tensor(lengths))
    further = net(gather(x, lengths, 2), cache=cache)
    for row, start in enumerate(lengths):
        torch.testing.assert_close(further[row], expected[row, start : start + 2], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@every_cache
def test_rows_are_selected_with_their_lengths(static):
    net, x = small_net(Decoder), tokens()
    expected = net(x)
    cache = KeyValueCache(N, static)
    net(x[:, :6], cache=cache)
    cache.truncate(torch.tensor([6, 2, 4]))
    rows = torch.tensor([2, 0, 2, 1])
    cache.select(rows)
    assert cache.lengths.tolist() == [4, 6, 4, 2]
    further = net(gather(x[rows], [4, 6, 4, 2], 2), cache=cache)
    for ours, row, start in zip(further, rows, [4, 6, 4, 2]):
        torch.testing.assert_close(ours, expected[row, start : start + 2], rtol=1e-4, atol=1e-4)
    cache.select(torch.tensor([0, 2]))
    assert cache.lengths.tolist() == [6, 6]
    assert (cache.longest, cache.aligned) == ((0, False) if static else (6, True))
    torch.testing.assert_close(net(x[[2, 2], 6:8], cache=cache), expected[[2, 2], 6:8], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@every_cache
def test_an_encoder_does_not_see_past_the_end_of_a_row(static):
    """A block sees itself and what is before it in its row; what longer rows or dropped tokens left is hidden."""
    net, x = small_net(Encoder), tokens()
    cache = KeyValueCache(N, static)
    net(x[:, :6], cache=cache)
    cache.truncate(torch.tensor([6, 2, 6]))
    alone = KeyValueCache(N)
    net(x[1:2, :2], cache=alone)
    expected = [net(x[1:2, 2:5], cache=alone)[0]]
    further = net(gather(x, [6, 2, 6], 3), cache=cache)
    # keys and values of the first block are those of six tokens in one cache and of two in the other
    assert not torch.allclose(further[1], expected[0], atol=1e-3)
    cache.clear()
    net(x[1:2, :2].expand(3, 2), cache=cache)
    net(x[:, 6:9], cache=cache)
    cache.truncate(torch.tensor([5, 2, 5]))
    torch.testing.assert_close(net(gather(x, [2, 2, 2], 3), cache=cache)[1], expected[0], rtol=1e-4, atol=1e-4)


@every_cache
def test_buffers_are_allocated_once(static):
    net, x = small_net(Decoder).requires_grad_(False), tokens()
    cache = KeyValueCache(N, static)
    cache.clear()  # of nothing
    assert not cache.started
    net(x[:, :2], cache=cache)
    places = {name: buffer.data_ptr() for name, buffer in cache.named_buffers()}
    assert set(places) == {"lengths", *(f"{what}_{layer}" for what in ("keys", "values") for layer in range(2))}
    net(x[:, 2:5], cache=cache)
    cache.truncate(3)
    net(x[:, 3:4], cache=cache)
    cache.truncate(torch.tensor([4, 1, 2]))
    net(x[:, 4:5], cache=cache)
    cache.clear()
    assert {name: buffer.data_ptr() for name, buffer in cache.named_buffers()} == places
    assert cache.lengths.tolist() == [0, 0, 0]
    assert cache.aligned is not static
    assert cache.keys_0.shape == (3, 2, N, 8)
