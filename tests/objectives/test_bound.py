"""The non-autoregressive loss against the definition of what it bounds: the mean over all orders."""

import pytest
import torch

from nar_scale.objectives import NonAutoregressiveWrapper
from tests.masking.helpers import SCHEDULES
from tests.model.helpers import TableNet

from .helpers import batch_of, mean_and_error, nelbo_by_all_orders

MASK_ID, NUM_TOKENS = 1, 4  # answers 0, 2 and 3


def wrapper_of_table(n, schedule="linear", **options):
    return NonAutoregressiveWrapper(TableNet(n, NUM_TOKENS), mask_id=MASK_ID, schedule=schedule, **options).eval()


@torch.no_grad()
def estimates(wrapper, tokens, length, rows=500, seeds=12):
    """The sequence's loss in nats, averaged over `rows` samples, once for each seed."""
    batch = batch_of(tokens.expand(rows, -1), torch.full((rows,), length))
    return [float(wrapper.loss_terms(batch, seed=seed).sums[0]) / rows for seed in range(seeds)]


every_masking = pytest.mark.parametrize("masking", ["exact", "bernoulli"])


@every_masking
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("tokens", "length"), [([0, 3], 2), ([2, 2, 0, 3], 4), ([3, 2, 0, 0], 3)])
def test_the_loss_is_the_mean_over_all_orders(schedule, tokens, length, masking):
    tokens = torch.tensor(tokens)
    wrapper = wrapper_of_table(len(tokens), schedule, masking=masking)
    truth = nelbo_by_all_orders(wrapper.net, tokens, list(range(length)), MASK_ID)
    rows = 500 if masking == "exact" else 2500  # independent coins vary more
    mean, error = mean_and_error(estimates(wrapper, tokens, length, rows))
    assert error < 0.01 * truth
    assert abs(mean - truth) < 4 * error + 1e-5 * truth


@pytest.mark.parametrize("training_schedule", ["bell", "cosine"])
def test_a_schedule_of_training_alone_has_the_same_mean_and_leaves_evaluation_as_it_is(training_schedule):
    tokens, options = torch.tensor([2, 2, 0, 3]), {"no_replace_prob": 0.0, "random_token_prob": 0.0}
    usual, wrapper = (wrapper_of_table(4, training_schedule=each, **options) for each in (None, training_schedule))
    assert estimates(wrapper, tokens, 4, seeds=2) == estimates(usual, tokens, 4, seeds=2)
    batch = batch_of(tokens.expand(500, -1))
    assert torch.equal(usual.train().loss_terms(batch).sums, usual.eval().loss_terms(batch).sums)
    assert not torch.equal(wrapper.train().loss_terms(batch).sums, usual.loss_terms(batch).sums)
    mean, error = mean_and_error(estimates(wrapper, tokens, 4))
    truth = nelbo_by_all_orders(wrapper.net, tokens, list(range(4)), MASK_ID)
    assert error < 0.01 * truth
    assert abs(mean - truth) < 4 * error
    drawn = wrapper_of_table(4, training_schedule, **options)
    assert torch.equal(wrapper.loss_terms(batch, seed=5).sums, drawn.loss_terms(batch, seed=5).sums)
    wrapper.use_simple_mdlm_loss_weight = False
    assert torch.equal(wrapper.counts(batch, seed=5), wrapper.loss_terms(batch, seed=5).counts)


def test_linear_and_uniform_count_are_one_schedule():
    tokens = torch.tensor([2, 2, 0, 3])
    assert estimates(wrapper_of_table(4, "linear"), tokens, 4) == estimates(
        wrapper_of_table(4, "uniform_count"), tokens, 4
    )


@every_masking
@pytest.mark.parametrize("schedule", ["linear", "cosine", SCHEDULES["late"]])
def test_given_tokens_condition_the_bound(schedule, masking):
    tokens, frozen = torch.tensor([2, 3, 0, 3]), torch.tensor([False, True, False, False])
    wrapper = wrapper_of_table(4, schedule, masking=masking)
    truth = nelbo_by_all_orders(wrapper.net, tokens, [0, 2], MASK_ID)  # place 3 is padding
    torch.manual_seed(0)
    drawn = [
        wrapper(tokens.expand(500, -1), frozen=frozen.expand(500, -1), lens=torch.full((500,), 3)) for _ in range(12)
    ]
    mean, error = mean_and_error([2 * losses.loss.item() for losses in drawn])
    assert error < 0.01 * truth
    assert abs(mean - truth) < 4 * error
    assert all(losses.loss == losses.generator_loss and losses.critic_loss is None for losses in drawn)


@every_masking
def test_the_loss_per_token_of_unlike_sequences_weighs_their_tokens(masking):
    wrapper, rows = wrapper_of_table(4, masking=masking), 2000
    kinds = [(torch.tensor([2, 2, 0, 3]), 4), (torch.tensor([0, 3, 0, 0]), 1), (torch.tensor([3, 0, 0, 0]), 0)]
    truths = [nelbo_by_all_orders(wrapper.net, tokens, list(range(length)), MASK_ID) for tokens, length in kinds]
    batch = batch_of(
        torch.stack([tokens for tokens, _ in kinds]).repeat(rows, 1), torch.tensor([n for _, n in kinds]).repeat(rows)
    )
    means = [wrapper.loss_terms(batch, seed=seed).total().item() for seed in range(12)]
    mean, error = mean_and_error(means)
    assert abs(mean - sum(truths) / 5) < 4 * error
    assert error < 0.01 * mean


@every_masking
def test_the_unweighted_loss_is_the_plain_mean_over_masked_tokens(masking):
    wrapper = wrapper_of_table(4, "cosine", use_simple_mdlm_loss_weight=False, masking=masking).train()
    wrapper.no_replace_prob = wrapper.random_token_prob = 0.0
    tokens = torch.tensor([0, 2, 3])[torch.randint(3, (200, 4), generator=torch.Generator().manual_seed(0))]
    terms = wrapper.loss_terms(batch_of(tokens), seed=5)
    seen = wrapper.net.seen[-1]
    masked = seen == MASK_ID
    probabilities = wrapper.net.table[wrapper.net.code(seen)].double().exp()
    probabilities[..., MASK_ID] = 0
    right = (probabilities / probabilities.sum(-1, keepdim=True)).gather(-1, tokens[..., None])[..., 0]
    assert terms.total().item() == pytest.approx(-right.log()[masked].mean().item(), rel=1e-5)
    assert terms.counts.tolist() == [masked.sum()]


@every_masking
def test_the_loss_in_eval_mode_is_the_bound_whatever_is_trained_with(masking):
    options = {"schedule": "cosine", "masking": masking}
    weighted = wrapper_of_table(4, **options)
    unweighted = wrapper_of_table(4, use_simple_mdlm_loss_weight=False, **options)
    lengths = torch.tensor([4, 3, 0, 1])
    batch = batch_of(torch.tensor([[2, 2, 0, 3], [3, 2, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]]), lengths)
    expected, terms = (wrapper.loss_terms(batch, seed=5) for wrapper in (weighted, unweighted))
    assert torch.equal(terms.sums, expected.sums)
    assert torch.equal(terms.moments, expected.moments)
    assert terms.counts.tolist() == unweighted.counts(batch, seed=5).tolist() == [lengths.sum()]
    assert weighted.likelihood_kind == unweighted.likelihood_kind == "bound"
    in_training = unweighted.train().counts(batch, seed=5)
    assert torch.equal(in_training, unweighted.loss_terms(batch, seed=5).counts)
    assert in_training < lengths.sum()
