"""Block diffusion's decoding: cached keys and values, prompts of different lengths, ends."""

import pytest
import torch

from nar_scale.config import UNMASKING_SAMPLERS
from nar_scale.masking import Noise
from nar_scale.model import Encoder
from nar_scale.objectives import BlockDiffusionWrapper
from tests.decoding.tables import settings
from tests.model.helpers import small_net
from tests.objectives.helpers import random_tokens

N, MASK_ID, SIZE = 12, 10, 4


def blocks_of(size=SIZE, *, net=None, **options):
    options = {"no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    net = small_net(Encoder, **(net or {}))
    return BlockDiffusionWrapper(net, mask_id=MASK_ID, block_size=size, **options).eval()


def requests(rows):
    return Noise.of_requests(1, torch.as_tensor(rows))


def prompts(*lengths):
    tokens = random_tokens(len(lengths), N)
    return tokens.masked_fill(torch.arange(N) >= torch.tensor(lengths)[:, None], MASK_ID)


@torch.no_grad()
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("sampler", ["random", "threshold", "wino"])
def test_cached_is_uncached(sampler, rotary):
    """Each call sees what it would see if all finished blocks passed the network again with it."""
    wrapper, seen = blocks_of(net={"rotary": rotary}), []

    def watch(_, arguments, options, output):
        cache = options["cache"]
        seen.append((arguments[0].clone(), cache.longest - arguments[0].shape[1], wrapper.net.finish(output)))

    handle = wrapper.net.register_forward_hook(watch, with_kwargs=True)
    decoding = settings(sampler, temperature=3.0)
    final = torch.tensor(wrapper.sample(torch.full((8, N), MASK_ID), decoding, requests(range(8))).tokens)
    handle.remove()
    assert {past for _, past, _ in seen} == {0, 4, 8}
    for tokens, past, output in seen:
        if len(tokens) < 8:
            continue  # some have left the batch
        alone = tokens[:, :SIZE]
        whole = torch.cat((final[:, :past], alone), dim=1)
        hidden = wrapper.net(whole, return_embeddings=True, rule=lambda q, k: k // SIZE <= q // SIZE)
        torch.testing.assert_close(output[:, :SIZE], hidden[:, past:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_shadows_say_what_a_masked_token_would():
    """The sampler `wino` asks about a revealed token by its shadow: in one block, as if that token were masked."""
    wrapper, seen = blocks_of(N, net={"depth": 1}), []
    handle = wrapper.net.register_forward_hook(
        lambda net, arguments, output: seen.append((arguments[0], net.finish(output)))
    )
    decoding = settings("wino", temperature=3.0, reveal_threshold=0.1, keep_threshold=0.5)
    wrapper.sample(torch.full((2, N), MASK_ID), decoding, requests(range(2)))
    handle.remove()
    tokens, output = seen[1]
    assert tokens.shape == output.shape[:2] == (2, 2 * N)
    revealed = (tokens[:, :N] != MASK_ID).nonzero().tolist()
    assert revealed
    torch.testing.assert_close(output[:, :N], wrapper.net(tokens[:, :N], return_embeddings=True))
    for row, place in revealed:
        hidden = tokens[row : row + 1, :N].clone()
        hidden[0, place] = MASK_ID
        expected = wrapper.net(hidden, return_embeddings=True)
        # the others see the token in one pass and not in the other, which a stack of one block does not pass on
        torch.testing.assert_close(output[row, N + place], expected[0, place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", UNMASKING_SAMPLERS)
def test_prompts_of_different_lengths_take_the_calls_that_they_need(sampler):
    wrapper, given = blocks_of(), prompts(0, 3, 4, 7, 9, 12, 12, 8)
    decoding = settings(sampler, temperature=3.0, steps=12)
    sizes = []
    handle = wrapper.net.register_forward_hook(lambda _, arguments, output: sizes.append(arguments[0].shape))
    together = wrapper.sample(given, decoding, requests(range(8)))
    handle.remove()
    for row in range(8):
        alone = wrapper.sample(given[row : row + 1], decoding, requests([row]))
        assert alone.tokens[0] == together.tokens[row]
        assert alone.network_calls[0] == together.network_calls[row]
    masks = (given == MASK_ID).unflatten(1, (3, SIZE)).sum(dim=2)
    begun = [0, 0, 1, 1, 2, 3, 3, 2]
    for row, calls in enumerate(together.network_calls):
        kept = 0 if begun[row] == 3 else int(begun[row] > 0) + (2 - begun[row])
        assert kept <= calls <= kept + int(masks[row].sum())
    assert together.network_calls[5] == together.network_calls[6] == 0
    assert max(rows for rows, _ in sizes) < 8


def test_calls_are_those_of_one_token_a_call():
    given = prompts(0, 3, 4, 7, 9, 12)
    calls = blocks_of().sample(given, settings("random"), requests(range(6))).network_calls
    assert calls == [12 + 2, 9 + 2, 8 + 1 + 1, 5 + 1 + 1, 3 + 1, 0]


def test_a_sequence_ends_at_its_end_token_and_leaves_the_batch():
    wrapper, given = blocks_of(), prompts(2, 2, 2, 5, 12, 0)
    given[:, 0] = 7
    decoding = settings("random", temperature=8.0)
    whole = wrapper.sample(given, decoding, requests(range(6)))
    end = 7
    cut = wrapper.sample(given, decoding, requests(range(6)), end_token=end)
    shorter = 0
    for row in range(6):
        generated = [place for place in range(N) if given[row, place] == MASK_ID and whole.tokens[row][place] == end]
        if not generated:
            assert cut.tokens[row] == whole.tokens[row]
            assert cut.network_calls[row] == whole.network_calls[row]
            continue
        assert cut.tokens[row] == whole.tokens[row][: generated[0]]
        assert cut.network_calls[row] <= whole.network_calls[row]
        shorter += cut.network_calls[row] < whole.network_calls[row]
    assert shorter
    assert cut.tokens[4] == given[4].tolist()


def test_what_is_given_behind_an_end_token_is_kept():
    wrapper, given = blocks_of(), torch.full((64, N), MASK_ID)
    given[:, 10] = 3
    samples = wrapper.sample(given, settings("random", temperature=8.0), requests(range(64)), end_token=7)
    lengths = [len(tokens) for tokens in samples.tokens]
    assert set(lengths) == {11, 12}  # the last place alone may end a sequence
    assert all(tokens[10] == 3 for tokens in samples.tokens)
    assert any(7 in tokens for tokens in samples.tokens)


def test_the_callback_sees_whole_sequences():
    wrapper, given, frames = blocks_of(steps=6), prompts(0, 5), []

    def watch(tokens, number):
        assert tokens.shape == (2, N)
        frames.append((number, int((tokens == MASK_ID).sum())))

    wrapper.generate(prompts=given, callback=watch)
    numbers, left = zip(*frames)
    assert list(numbers) == sorted(set(numbers))
    assert list(left) == sorted(left, reverse=True)
    assert left[-1] == 0
