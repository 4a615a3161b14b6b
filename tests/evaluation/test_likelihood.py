import math

import pytest
import torch
import torch.nn.functional as F

from nar_scale.errors import DataError
from nar_scale.evaluation import Likelihood, evaluate_likelihood
from nar_scale.evaluation.likelihood import EVALUATION_SEED, MeanLoss
from nar_scale.model import Encoder
from nar_scale.objectives import BlockDiffusionWrapper, NonAutoregressiveWrapper
from tests.errors import assert_names, refused
from tests.model.helpers import TableNet, small_net
from tests.objectives.helpers import batch_of, nelbo_by_all_orders, random_tokens, rows_of, small_ar, small_nar

N, ROWS = 12, 40
LENGTHS = torch.tensor([12, 5, 1, 12, 8, 12, 12, 3]).repeat(5)


def batches(size, lengths=None):
    whole = batch_of(random_tokens(ROWS, N), lengths)
    return [rows_of(whole, slice(start, start + size)) for start in range(0, ROWS, size)]


def test_autoregressive_equals_a_direct_computation():
    wrapper = small_ar(mask_prob=0.5).train()
    result = evaluate_likelihood(wrapper, batches(7, LENGTHS), bytes_per_token=2.5)
    tokens, predicted = random_tokens(ROWS, N), torch.arange(1, N) < LENGTHS[:, None]
    with torch.no_grad():
        losses = F.cross_entropy(wrapper.net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")
    nats = losses[predicted].mean().item()
    assert result.nats_per_token == pytest.approx(nats, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 2.5, rel=1e-5)
    assert (result.tokens, result.sequences, result.kind) == (int(predicted.sum()), ROWS, "exact")
    assert wrapper.training


@pytest.mark.parametrize("lengths", [torch.full((ROWS,), N), LENGTHS], ids=["full", "ragged"])
def test_the_standard_error_is_that_of_a_ratio_of_sums(lengths):
    """Var(sum loss / sum count) = sum (loss_i - ratio count_i)^2 / (sum count)^2, sequences being independent."""
    wrapper, tokens = small_ar(), random_tokens(ROWS, N)
    predicted = torch.arange(1, N) < lengths[:, None]
    with torch.no_grad():
        losses = F.cross_entropy(wrapper.net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")
    totals, counts = (losses * predicted).double().sum(dim=1), predicted.double().sum(dim=1)
    ratio = totals.sum() / counts.sum()
    expected = ((totals - ratio * counts).square().sum().sqrt() / counts.sum()).item()
    assert evaluate_likelihood(wrapper, batches(8, lengths)).standard_error == pytest.approx(expected, rel=1e-3)


def test_the_standard_error_of_certain_knowledge_is_nothing():
    """Each token costs log 11 exactly, however long the sequences are."""
    wrapper = small_ar()
    torch.nn.init.zeros_(wrapper.net.to_logits.weight)
    result = evaluate_likelihood(wrapper, batches(8, LENGTHS))
    assert result.nats_per_token == pytest.approx(math.log(11), rel=1e-6)
    assert result.standard_error < 1e-3


@pytest.mark.parametrize("options", [{}, {"schedule": "cosine", "self_cond": True, "no_replace_prob": 0.5}])
def test_the_bound_does_not_depend_on_the_batch_size(options):
    wrapper = small_nar(**options).train()
    results = [evaluate_likelihood(wrapper, batches(size, LENGTHS)) for size in (1, 7, 40)]
    for result in results[1:]:
        assert result.nats_per_token == pytest.approx(results[0].nats_per_token, rel=1e-5)
        assert result.standard_error == pytest.approx(results[0].standard_error, rel=1e-4)
        assert (result.tokens, result.sequences) == (int(LENGTHS.sum()), ROWS)
    assert results[0].kind == "bound"
    assert evaluate_likelihood(wrapper, batches(8, LENGTHS), seed=1) != results[0]
    assert wrapper.training


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_lies_within_its_standard_error_of_the_truth(schedule):
    wrapper = NonAutoregressiveWrapper(TableNet(3, 4), mask_id=3, schedule=schedule)
    kinds = torch.tensor([[0, 1, 2], [2, 2, 1], [1, 0, 0], [0, 2, 1]])
    truth = sum(nelbo_by_all_orders(wrapper.net, tokens, [0, 1, 2], 3) for tokens in kinds) / 12
    deviations = []
    for seed in range(20):
        result = evaluate_likelihood(wrapper, [batch_of(kinds.repeat(100, 1))], seed=seed)
        assert 0.002 < result.standard_error / truth < 0.05
        deviations.append((result.nats_per_token - truth) / result.standard_error)
    assert max(map(abs, deviations)) < 4
    assert abs(sum(deviations)) / math.sqrt(20) < 4


def test_masked_tokens_are_told_apart_by_the_fraction_that_is_masked():
    wrapper = small_nar()
    by_size = [evaluate_likelihood(wrapper, batches(size, LENGTHS)).by_masked_fraction for size in (7, 40)]
    assert list(by_size[0]) == [f"masked_0.{i}_to_0.{i + 2}" for i in (0, 2, 4, 6)] + ["masked_0.8_to_1.0"]
    terms = wrapper.loss_terms(batch_of(random_tokens(ROWS, N), LENGTHS), seed=EVALUATION_SEED)
    for name, loss in by_size[0].items():
        nats, tokens = terms.metrics[name].tolist()
        assert loss.tokens == by_size[1][name].tokens == tokens
        assert loss.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)
        assert loss.nats_per_token == pytest.approx(by_size[1][name].nats_per_token, rel=1e-5)
    assert evaluate_likelihood(small_ar(), batches(8)).by_masked_fraction == {}


@pytest.mark.parametrize(
    ("wrapper", "named"),
    [
        (small_ar(), ("exact NLL",)),
        (small_nar(), ("NELBO", "exact-count masking", "stratified", "seed", 5)),
        (small_nar(masking="bernoulli"), ("NELBO", "Bernoulli masking")),
        (BlockDiffusionWrapper(small_net(Encoder), mask_id=10, block_size=4), ("NELBO", "blocks", 4)),
    ],
)
def test_the_estimator_is_named(wrapper, named):
    assert_names(evaluate_likelihood(wrapper, batches(40), seed=5).estimator, *named)


def test_ranks_add_up():
    """`reduce` sums over ranks: here, two that see the same give the same mean and a smaller error."""
    wrapper = small_ar()
    one = evaluate_likelihood(wrapper, batches(8))
    two = evaluate_likelihood(wrapper, batches(8), reduce=lambda sums: sums * 2)
    assert two.nats_per_token == pytest.approx(one.nats_per_token)
    assert two.standard_error == pytest.approx(one.standard_error / math.sqrt(2))
    assert (two.tokens, two.sequences) == (2 * one.tokens, 2 * one.sequences)
    one = evaluate_likelihood(small_nar(), batches(8))
    two = evaluate_likelihood(small_nar(), batches(8), reduce=lambda sums: sums * 2)
    for name, loss in one.by_masked_fraction.items():
        assert two.by_masked_fraction[name] == MeanLoss(pytest.approx(loss.nats_per_token), 2 * loss.tokens)


@pytest.mark.parametrize("wrapper", [small_ar(), small_nar(self_cond=True)], ids=["ar", "nar"])
def test_empty_batches_are_harmless_among_others(wrapper):
    nothing = batch_of(torch.zeros(2, N, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), first=ROWS)
    assert evaluate_likelihood(wrapper, [*batches(8), nothing]) == evaluate_likelihood(wrapper, batches(8))
    for empty in ([], [nothing]):
        with refused(DataError, "no token"):
            evaluate_likelihood(wrapper, empty)


def test_it_reads_well():
    assert str(Likelihood(1.25, 0.0125, 10, 2, "bound")) == "1.2500 ± 0.0125 nats/token (bound)"
    with_bytes = Likelihood(math.log(2), 0.0, 10, 2, "exact", bytes_per_token=2.0)
    assert str(with_bytes) == "0.6931 ± 0.0000 nats/token (exact), 0.500 bits/byte"
    assert Likelihood(1e9, 0.0, 1, 1, "exact").perplexity < math.inf
