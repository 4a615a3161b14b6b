"""The hybrid between its two sides: autoregression and block diffusion of one network."""

import math

import pytest
import torch

from nar_scale.config import LeftToRightDecoding, RandomDecoding, SelfSpeculativeDecoding
from nar_scale.data import Batch
from nar_scale.errors import ConfigError, NumericalError
from nar_scale.masking import Noise
from nar_scale.model import Decoder, Encoder, KeyValueCache
from nar_scale.objectives import AutoregressiveWrapper, HybridWrapper
from tests.errors import refused
from tests.model.helpers import small_net

from .helpers import batch_of, random_tokens, rows_of

MASK_ID, N = 10, 12
LENGTHS = torch.tensor([12, 7, 1, 12, 9])


def hybrid(block_size=4, net=None, **options):
    return HybridWrapper(small_net(Decoder, **(net or {})), mask_id=MASK_ID, block_size=block_size, **options)


def batches():
    tokens = random_tokens(5, N)
    return {
        "whole": batch_of(tokens),
        "padded": batch_of(tokens, LENGTHS),
        "documents": with_documents(batch_of(tokens)),
    }


def with_documents(batch: Batch) -> Batch:
    numbers = (torch.arange(N) >= 5).long().expand(len(batch.tokens), -1)
    return Batch(batch.tokens, batch.lengths, batch.sample_ids, batch.epochs, batch.positions, documents=numbers)


@pytest.mark.parametrize("net", [{}, {"rotary": False, "kv_heads": 1}, {"tie_embedding": True}])
@pytest.mark.parametrize("name", batches())
def test_without_diffusion_the_loss_is_the_autoregressive_one(name, net):
    wrapper, batch = hybrid(net=net, diffusion_weight=0.0).train(), batches()[name]
    plain = AutoregressiveWrapper(wrapper.net).train()
    ours, theirs = wrapper.loss_terms(batch, seed=1), plain.loss_terms(batch, seed=1)
    assert ours.total().item() == pytest.approx(theirs.total().item(), rel=2e-7)
    assert torch.equal(ours.counts[:1], theirs.counts)
    torch.testing.assert_close(ours.moments, theirs.moments)
    gradients = [
        torch.autograd.grad(terms.total(), list(wrapper.net.parameters()), allow_unused=True)
        for terms in (ours, theirs)
    ]
    for mine, other in zip(*gradients):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_diffusion_in_blocks_of_one_token_is_an_autoregressive_model_over_the_causal_past():
    wrapper = hybrid(1, autoregressive_weight=0.0, diffusion_weight=1.0).eval()
    tokens = random_tokens(5, N)
    expected = 0.0
    for place in range(N):  # the network reads the past and then a mask, and answers in its place
        asked = torch.cat((tokens[:, :place], torch.full((5, 1), MASK_ID)), dim=1)
        logits = wrapper.net(asked)[:, -1]
        expected += torch.nn.functional.cross_entropy(logits, tokens[:, place], reduction="sum").item()
    for seed in range(3):  # whatever the noise: nothing is left to chance
        total = wrapper.loss_terms(batch_of(tokens), seed=seed).total().item()
        assert total == pytest.approx(expected / tokens.numel(), rel=1e-6)


@torch.no_grad()
def test_each_term_has_its_own_normaliser_and_weight():
    wrapper = hybrid(autoregressive_weight=2.0, diffusion_weight=0.5).eval()
    batch = batches()["padded"]
    terms = wrapper.loss_terms(batch, seed=1)
    assert wrapper.term_names == ("token_loss", "diffusion_loss")
    assert terms.counts.tolist() == [int((LENGTHS - 1).sum()), int(LENGTHS.sum())]
    assert torch.equal(wrapper.counts(batch, seed=1), terms.counts)
    means = terms.sums / terms.counts
    assert terms.total().item() == pytest.approx((2.0 * means[0] + 0.5 * means[1]).item())
    assert wrapper.likelihood_kind == "exact"
    torch.manual_seed(0)
    losses = wrapper(batch.tokens, lens=LENGTHS)
    assert losses.token_loss.item() == pytest.approx(means[0].item())
    assert losses.loss.item() == pytest.approx((2.0 * losses.token_loss + 0.5 * losses.diffusion_loss).item())


@pytest.mark.parametrize("name", ["whole", "padded"])
def test_the_loss_does_not_depend_on_how_a_batch_is_divided(name):
    wrapper, batch = hybrid().train(), batches()[name]
    whole = wrapper.loss_terms(batch, seed=1)
    parts = [wrapper.loss_terms(rows_of(batch, slice(row, row + 1)), seed=1) for row in range(len(batch.tokens))]
    torch.testing.assert_close(sum(part.sums for part in parts), whole.sums)
    assert torch.equal(sum(part.counts for part in parts), whole.counts)


def moved(before, after):
    return ((before - after).abs().amax(dim=(0, 2)) > 1e-6).nonzero().flatten().tolist()


@torch.no_grad()
def test_what_each_copy_sees():
    diffusion, tokens = hybrid().eval().diffusion, random_tokens(1, N)
    masked = torch.where(torch.arange(N) % 2 == 0, tokens, MASK_ID)
    of_masked, of_true = diffusion.embed_both(masked, tokens, {})
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 10
    other_masked, other_true = diffusion.embed_both(masked, changed, {})
    assert moved(of_true, other_true) == list(range(5, N))  # causal
    assert moved(of_masked, other_masked) == [8, 9, 10, 11]  # the blocks behind that of the changed token
    hidden = masked.clone()
    hidden[0, 6] = (masked[0, 6] + 1) % 10
    other_masked, other_true = diffusion.embed_both(hidden, tokens, {})
    assert moved(of_true, other_true) == []
    assert moved(of_masked, other_masked) == [4, 5, 6, 7]  # its own block


@torch.no_grad()
def test_documents_are_apart_in_both_copies():
    diffusion, tokens = hybrid().eval().diffusion, random_tokens(1, N)
    documents = (torch.arange(N) >= 6).long()[None]
    masks = torch.full_like(tokens, MASK_ID)
    changed = torch.where(documents == 0, (tokens + 1) % 10, tokens)
    before, after = (diffusion.embed_both(masks, true, {"documents": documents}) for true in (tokens, changed))
    assert moved(before[0], after[0]) == [4, 5]
    assert moved(before[1], after[1]) == list(range(6))


@torch.no_grad()
def test_cached_decoding_by_blocks_predicts_what_training_does():
    wrapper = hybrid().eval()
    tokens = random_tokens(3, N)
    visible = torch.where(torch.rand(3, N, generator=torch.Generator().manual_seed(1)) < 0.6, MASK_ID, tokens)
    trained = wrapper.net.to_logits(wrapper.diffusion.embed_both(visible, tokens, {})[0])
    cache = KeyValueCache(N)
    for start in range(0, N, 4):
        block = slice(start, start + 4)
        decoded, _ = wrapper.diffusion.predict(visible[:, block], cache=cache)
        torch.testing.assert_close(decoded, trained[:, block], rtol=1e-4, atol=1e-4)
        cache.truncate(start)
        wrapper.diffusion.predict(tokens[:, block], cache=cache, causal=True)


@torch.no_grad()
def test_the_mask_is_never_an_answer():
    wrapper = hybrid(net={"tie_embedding": True}).eval()
    wrapper.net.token_emb.weight[MASK_ID] *= 100
    noise = Noise.of_requests(0, torch.arange(6))
    given = random_tokens(6, 3)
    for decoding in (
        LeftToRightDecoding(sampler="left_to_right"),
        LeftToRightDecoding(sampler="left_to_right", temperature=0.0),
        SelfSpeculativeDecoding(sampler="self_speculative", temperature=2.0),
        RandomDecoding(sampler="random"),
    ):
        samples = wrapper.sample(given, decoding, noise)
        assert [len(row) for row in samples.tokens] == [N - 3] * 6
        assert not any(MASK_ID in row for row in samples.tokens)


def test_samples_end_before_the_end_token():
    wrapper = hybrid().eval()
    given, noise = random_tokens(6, 3), Noise.of_requests(0, torch.arange(6))
    for decoding in (
        LeftToRightDecoding(sampler="left_to_right"),
        SelfSpeculativeDecoding(sampler="self_speculative"),
        RandomDecoding(sampler="random"),
    ):
        whole = wrapper.sample(given, decoding, noise).tokens
        end = whole[0][4]
        cut = wrapper.sample(given, decoding, noise, end_token=end)
        assert cut.tokens == [row[: row.index(end)] if end in row else row for row in whole]
        assert max(cut.network_calls) <= 3 * N


@torch.no_grad()
def test_the_probe_holds_both_sides():
    wrapper = hybrid().eval()
    tokens = wrapper.probe_tokens(torch.arange(N) * 7 + 3)
    probe = wrapper.run_probe(tokens[None])
    assert {name: logits.shape for name, logits in probe.items()} == {
        "logits": (1, N, MASK_ID + 1),
        "next_logits": (1, N, MASK_ID + 1),
    }
    assert all(bool(logits.isfinite().all()) for logits in probe.values())
    assert not torch.equal(probe["logits"], probe["next_logits"])


def test_contradictions_are_refused():
    with refused(ConfigError, "Decoder"):
        HybridWrapper(small_net(Encoder), mask_id=MASK_ID, block_size=4)
    with refused(ConfigError, "window"):
        hybrid(net={"window": 3})
    with refused(ConfigError, "max_seq_len 12", "block_size 5"):
        hybrid(5)
    with refused(ConfigError, "autoregressive_weight", "diffusion_weight"):
        hybrid(autoregressive_weight=0.0, diffusion_weight=0.0)
    with refused(ConfigError, "autoregressive_weight"):
        hybrid(autoregressive_weight=-1.0)
    with refused(ValueError, "max_seq_len is 12", "11"):
        hybrid()(random_tokens(1, 11))
    with refused(ValueError, "mask id 10"):
        hybrid()(torch.full((1, N), MASK_ID))
    with refused(ValueError, "max_seq_len is 12", "14"):
        hybrid().generate(random_tokens(1, 4), 10)
    with_gap = torch.tensor([[1, MASK_ID]])
    for generate in (hybrid().generate, hybrid().autoregressive.generate):
        with refused(ValueError, "mask token 10"):
            generate(with_gap, 3)
    with refused(ValueError, "eos_token 11"):
        hybrid().generate(random_tokens(1, 4), 3, eos_token=11)
    assert math.isfinite(hybrid()(random_tokens(2, N)).loss.item())


@pytest.mark.parametrize("shared_calls", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_network_that_is_not_finite_draws_no_tokens(temperature, shared_calls):
    broken = hybrid()
    broken.net.to_logits.weight.data.fill_(math.nan)
    with refused(NumericalError, "NaN"):
        broken.generate(random_tokens(2, 4), 3, temperature=temperature, shared_calls=shared_calls)
