"""What both wrappers promise to whoever trains them: sums and counts that add up over any parts of a batch."""

import pytest
import torch

from nar_scale.model import Encoder
from tests.model.helpers import small_net

from .helpers import batch_of, random_tokens, rows_of, small_ar, small_nar

BERT = {"no_replace_prob": 0.3, "random_token_prob": 0.3}
WRAPPERS = {
    "nar": lambda: small_nar(),
    "maskgit": lambda: small_nar(use_simple_mdlm_loss_weight=False, schedule="cosine", **BERT),
    "bernoulli": lambda: small_nar(masking="bernoulli", schedule="cosine", **BERT),
    "bernoulli_maskgit": lambda: small_nar(masking="bernoulli", use_simple_mdlm_loss_weight=False),
    "prefix": lambda: small_nar(prefix_length=3, use_simple_mdlm_loss_weight=False, condition_drop_prob=0.5),
    "self_conditioned": lambda: small_nar(self_cond=True, schedule="cosine", **BERT),
    "self_critic": lambda: small_nar(self_token_critic=True, critic_loss_weight=0.5, **BERT),
    "critic": lambda: small_nar(token_critic=small_net(Encoder, logits_dim=1), self_cond=True),
    "ar": lambda: small_ar(),
    "forgetful": lambda: small_ar(mask_prob=0.4),
    "all_terms": lambda: small_ar(net={"add_continuous_pred_head": True}, add_attn_z_loss=True, mask_prob=0.4),
}
every_wrapper = pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
LENGTHS = torch.tensor([12, 5, 0, 12, 1, 12, 2, 11])


def ragged_batch(lengths=LENGTHS):
    tokens = random_tokens(len(lengths), 12)
    return batch_of(tokens.masked_fill(torch.arange(12) >= lengths[:, None], 0), lengths)


@every_wrapper
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_terms_of_a_batch_are_sums_over_its_parts(make, parts):
    wrapper, batch = make().train(), ragged_batch()
    whole = wrapper.loss_terms(batch, seed=3)
    pieces = [wrapper.loss_terms(rows_of(batch, slice(start, start + parts)), seed=3) for start in range(0, 8, parts)]
    assert torch.equal(sum(piece.counts for piece in pieces), whole.counts)
    torch.testing.assert_close(sum(piece.sums for piece in pieces), whole.sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sum(piece.moments for piece in pieces), whole.moments, rtol=1e-4, atol=1e-4)
    for name, metric in whole.metrics.items():
        torch.testing.assert_close(sum(piece.metrics[name] for piece in pieces), metric, rtol=1e-4, atol=1e-4)


@every_wrapper
@pytest.mark.parametrize(
    "lengths", [LENGTHS, torch.full((8,), 12), torch.tensor([0, 0])], ids=["ragged", "full", "none"]
)
def test_counts_are_known_without_the_net(make, lengths):
    wrapper, batch = make(), ragged_batch(lengths)
    terms = wrapper.loss_terms(batch, seed=3)
    counts = wrapper.counts(batch, seed=3)
    assert torch.equal(counts, terms.counts)
    assert counts.dtype == terms.counts.dtype == terms.sums.dtype == torch.float32
    assert terms.sums.shape == terms.counts.shape == terms.weights.shape == (len(wrapper.term_names),)


@every_wrapper
@pytest.mark.parametrize("lengths", [[0], [0, 0], [0, 7]])
def test_nothing_to_predict_contributes_nothing_and_finite_gradients(make, lengths):
    wrapper = make().train()
    terms = wrapper.loss_terms(ragged_batch(torch.tensor(lengths)), seed=3)
    terms.total().backward()
    if not any(lengths):
        assert (terms.sums == 0).all()
        assert (terms.counts == 0).all()
        assert float(terms.total().detach()) == 0
    assert terms.total().isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in wrapper.parameters())


@every_wrapper
def test_padding_changes_nothing(make):
    wrapper, batch = make().train(), ragged_batch()
    noisy = torch.where(torch.arange(12) < LENGTHS[:, None], batch.tokens, 9)
    other = batch_of(noisy, LENGTHS)
    torch.testing.assert_close(
        wrapper.loss_terms(other, seed=3).sums, wrapper.loss_terms(batch, seed=3).sums, rtol=1e-5, atol=1e-6
    )


@every_wrapper
def test_the_loss_of_a_batch_knows_no_global_random_state(make):
    wrapper, batch = make().train(), ragged_batch()
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        results.append(wrapper.loss_terms(batch, seed=3).sums)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


@every_wrapper
def test_the_seed_and_the_sample_decide_the_masks(make):
    wrapper, batch = make().train(), ragged_batch()
    moved = batch_of(batch.tokens, batch.lengths, first=100)
    variants = {
        tuple(wrapper.loss_terms(b, seed=seed).sums.tolist()) for b, seed in ((batch, 3), (batch, 4), (moved, 3))
    }
    random = getattr(wrapper, "mask_prob", 1) > 0
    assert len(variants) == (3 if random else 1)


@pytest.mark.parametrize("options", [{}, {"self_cond": True, "self_token_critic": True}])
def test_parts_of_a_batch_are_masked_bit_for_bit_alike(options):
    wrapper, batch = small_nar(**options, **BERT).train(), ragged_batch()
    seen = []
    wrapper.net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    wrapper.loss_terms(batch, seed=3)
    whole, calls = seen[0], len(seen)
    for row in range(8):
        wrapper.loss_terms(rows_of(batch, slice(row, row + 1)), seed=3)
    assert torch.equal(torch.cat(seen[calls::calls]), whole)
    assert (whole == 10).any()


def test_the_total_divides_by_the_whole_batch():
    terms = small_nar(self_token_critic=True, critic_loss_weight=0.5).loss_terms(ragged_batch(), seed=3)
    of_the_whole = torch.tensor([100.0, 50.0])
    assert terms.total(of_the_whole).item() == pytest.approx(
        (terms.sums[0] / 100 + 0.5 * terms.sums[1] / 50).item(), rel=1e-6
    )
    assert terms.total().item() == pytest.approx(
        (terms.sums[0] / terms.counts[0] + 0.5 * terms.sums[1] / terms.counts[1]).item(), rel=1e-6
    )
