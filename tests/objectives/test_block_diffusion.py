"""Block diffusion between its two ends, autoregression and masked diffusion, and its cached decoding."""

import math
from itertools import permutations

import pytest
import torch

from nar_scale.errors import ConfigError
from nar_scale.masking import Noise
from nar_scale.model import Decoder, Encoder, KeyValueCache
from nar_scale.objectives import BlockDiffusionWrapper, NonAutoregressiveWrapper
from tests.errors import refused
from tests.model.helpers import small_net

from .helpers import batch_of, mean_and_error, random_tokens, rows_of

MASK_ID, N = 10, 12


def blocks_of(block_size, net=None, **options):
    options = {"no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    return BlockDiffusionWrapper(small_net(Encoder, **(net or {})), mask_id=MASK_ID, block_size=block_size, **options)


def log_probability(wrapper, tokens, visible, place):
    """log p(tokens[place]) given the true blocks before and what is `visible` of its own, through a plain forward."""
    start = place // wrapper.block_size * wrapper.block_size
    seen = torch.cat((tokens[:start], visible[start : start + wrapper.block_size]))

    def causal_blocks(query, key):
        return key // wrapper.block_size <= query // wrapper.block_size

    logits = wrapper.net(seen[None], rule=causal_blocks)[0, place].double()
    logits[MASK_ID] = -math.inf
    return float(logits.log_softmax(dim=-1)[tokens[place]])


@pytest.mark.parametrize("net", [{}, {"rotary": False, "kv_heads": 1}])
@torch.no_grad()
def test_blocks_of_one_token_are_an_autoregressive_model(net):
    wrapper = blocks_of(1, net=net).eval()
    decoder = small_net(Decoder, **net)
    decoder.load_state_dict(wrapper.net.state_dict())
    tokens = random_tokens(5, N)
    expected = 0.0
    for place in range(N):  # a decoder that reads the past and then a mask, and answers in its place
        asked = torch.cat((tokens[:, :place], torch.full((5, 1), MASK_ID)), dim=1)
        logits = decoder(asked)[:, -1]
        logits[:, MASK_ID] = -math.inf
        expected += torch.nn.functional.cross_entropy(logits, tokens[:, place], reduction="sum").item()
    for seed in range(3):  # whatever the noise: nothing is left to chance
        terms = wrapper.loss_terms(batch_of(tokens), seed=seed)
        assert terms.total().item() == pytest.approx(expected / tokens.numel(), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"schedule": "cosine"}, {"masking": "bernoulli"}, {"no_replace_prob": 0.3}])
def test_one_block_is_masked_diffusion(options):
    tokens, lengths = random_tokens(6, N), torch.tensor([12, 12, 7, 1, 12, 9])
    blocks = blocks_of(N, **options).train()
    whole = NonAutoregressiveWrapper(
        small_net(Encoder), mask_id=MASK_ID, **{"no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    ).train()
    ours, theirs = (wrapper.loss_terms(batch_of(tokens, lengths), seed=3) for wrapper in (blocks, whole))
    assert ours.total() == theirs.total()
    assert torch.equal(ours.moments, theirs.moments)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("length", [12, 7])
@torch.no_grad()
def test_the_loss_is_the_mean_over_all_orders_within_blocks(schedule, length):
    wrapper = blocks_of(3, schedule=schedule).eval()
    tokens = random_tokens(1, N)[0]
    truth = 0.0
    for start in range(0, length, 3):
        places = list(range(start, min(start + 3, length)))
        orders = list(permutations(places))
        for order in orders:
            visible = torch.full_like(tokens[:length], MASK_ID)
            for place in order:
                truth -= log_probability(wrapper, tokens, visible, place) / len(orders)
                visible[place] = tokens[place]
    batch = batch_of(tokens.expand(300, -1), torch.full((300,), length))
    mean, error = mean_and_error([float(wrapper.loss_terms(batch, seed=seed).sums[0]) / 300 for seed in range(10)])
    assert error < 0.01 * truth
    assert abs(mean - truth) < 4 * error + 1e-5 * truth


@torch.no_grad()
def test_cached_decoding_predicts_what_training_does():
    """Logits of a masked block with cached keys and values of the true ones before it are those of the loss."""
    wrapper = blocks_of(4).eval()
    tokens = random_tokens(3, N)
    visible = torch.where(torch.rand(3, N, generator=torch.Generator().manual_seed(1)) < 0.6, MASK_ID, tokens)
    trained = wrapper.net.to_logits(wrapper._embed(visible, tokens, Noise.draw(3, tokens.device), None, {}))
    cache = KeyValueCache(N)
    for start in range(0, N, 4):
        block = slice(start, start + 4)
        decoded, _ = wrapper.predict(visible[:, block], cache=cache)
        torch.testing.assert_close(decoded, trained[:, block], rtol=1e-4, atol=1e-4)
        cache.truncate(start)
        wrapper.predict(tokens[:, block], cache=cache)


def test_training_does_not_see_what_it_is_to_predict():
    wrapper = blocks_of(4).eval()
    tokens = random_tokens(1, N)
    visible = torch.full_like(tokens, MASK_ID)
    before = wrapper._embed(visible, tokens, Noise.draw(1, tokens.device), None, {})
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 10
    after = wrapper._embed(visible, changed, Noise.draw(1, tokens.device), None, {})
    moved = ((before - after).abs().amax(dim=(0, 2)) > 1e-6).nonzero().flatten().tolist()
    assert moved == [8, 9, 10, 11]


@pytest.mark.parametrize("options", [{}, {"num_classes": 3, "prefix_length": 1, "condition_drop_prob": 0.2}])
def test_generation(options):
    wrapper = blocks_of(4, steps=6, **options)
    classes = torch.tensor([0, 2]) if options else None
    settings = {"classes": classes, "guidance_scale": 2.0} if options else {}
    tokens, calls = wrapper.generate(2, return_network_calls=True, sampler="random", **settings)
    assert tokens.shape == (2, N)
    assert not bool((tokens == MASK_ID).any())
    assert calls.tolist() == [3 * 2 + 2] * 2  # two a block, and one for each block that others look back to
    prompt = torch.full((2, N), MASK_ID)
    prompt[:, :5], prompt[:, 9] = 7, 3
    filled = wrapper.generate(prompts=prompt, **settings)
    assert bool((filled[:, :5] == 7).all())
    assert bool((filled[:, 9] == 3).all())
    assert not bool((filled == MASK_ID).any())
    assert wrapper.generate(prompts=prompt[:, :6], **settings).shape == (2, 6)


def test_a_request_gives_the_same_alone_and_in_a_batch():
    wrapper = blocks_of(4, steps=6).eval()
    noise = Noise.of_requests(1, torch.arange(5))
    together = wrapper.generate(5, noise=noise)
    for row in range(5):
        alone = wrapper.generate(1, noise=Noise.of_requests(1, torch.tensor([row])))
        assert torch.equal(alone[0], together[row])


def test_greedy_decoding_of_single_tokens_is_greedy_autoregression():
    wrapper = blocks_of(1, steps=N).eval()
    generated = wrapper.generate(1, start_temperature=0.0)[0]
    for place in range(N):
        asked = torch.cat((generated[:place], torch.tensor([MASK_ID])))
        logits = wrapper.net(asked[None], rule=lambda query, key: key <= query)[0, -1]
        logits[MASK_ID] = -math.inf
        assert generated[place] == logits.argmax()


def test_masks_do_not_depend_on_the_batch():
    wrapper = blocks_of(4).train()
    batch = batch_of(random_tokens(8, N), torch.tensor([12, 3, 12, 9, 12, 12, 5, 12]))
    whole = wrapper.loss_terms(batch, seed=1)
    parts = [wrapper.loss_terms(rows_of(batch, slice(start, start + 2)), seed=1) for start in range(0, 8, 2)]
    assert sum(part.sums[0].item() for part in parts) == pytest.approx(whole.sums[0].item(), rel=1e-5)
    assert torch.equal(sum(part.counts for part in parts), whole.counts)
    assert torch.equal(wrapper.counts(batch, seed=1), whole.counts)


def test_one_call_a_block_still_samples():
    wrapper = blocks_of(2, steps=6).eval()
    drawn = wrapper.generate(8, start_temperature=1.0, filter_thres=0.0)
    assert len(drawn.unique(dim=0)) > 1


def test_documents_are_apart_in_both_copies():
    wrapper = blocks_of(4).eval()
    tokens, documents = random_tokens(1, N), (torch.arange(N) >= 6).long()[None]
    visible = torch.full_like(tokens, MASK_ID)
    changed = torch.where(documents == 0, (tokens + 1) % 10, tokens)
    before, after = (
        wrapper._embed(visible, true, Noise.draw(1, tokens.device), None, {"documents": documents})
        for true in (tokens, changed)
    )
    moved = ((before - after).abs().amax(dim=(0, 2)) > 1e-6).nonzero().flatten().tolist()
    assert moved == [4, 5]


def test_contradictions_are_refused():
    with refused(ConfigError, "window"):
        blocks_of(4, net={"window": 3})
    with refused(ConfigError, "max_seq_len 12", "block_size 5"):
        blocks_of(5)
    with refused(ConfigError, "self-conditioning"):
        blocks_of(4, self_cond=True)
    with refused(ConfigError, "critic"):
        blocks_of(4, self_token_critic=True)
    with refused(ConfigError, "Encoder"):
        BlockDiffusionWrapper(small_net(Decoder), mask_id=MASK_ID, block_size=4)
