"""Tokens masked each on its own account, given that at least one is: the whole distribution of the masks."""

import math

import pytest
import torch

from nar_scale.errors import ConfigError
from nar_scale.masking import Noise, get_schedule, mask_tokens, masked_counts

from .helpers import SCHEDULES, chi_square_excess, requests, rows_of

MASK_ID, NUM_TOKENS, N = 20, 50, 40


def masked(maskable, noise, schedule="linear", **corruption):
    tokens = torch.full(maskable.shape, 7)
    schedule = get_schedule(schedule)
    return mask_tokens(tokens, maskable, noise, schedule, MASK_ID, NUM_TOKENS, masking="bernoulli", **corruption)


def at_progress(progress, rows):
    """Noise of so many requests that all are at the same progress."""
    stratum = int(progress * 2**53) << 11
    return Noise(requests(rows).keys, torch.full((rows,), stratum - (2**64 if stratum >= 2**63 else 0)))


@pytest.mark.parametrize("progress", [0.1, 0.5, 0.8, 0.95])
def test_every_mask_but_the_empty_one_is_as_likely_as_independent_coins_make_it(progress):
    rows = 40_000
    maskable = torch.tensor([True, False, True, True, False, True]).expand(rows, 6)
    result = masked(maskable, at_progress(progress, rows))
    m = 1 - progress
    sizes = torch.tensor([number.bit_count() for number in range(16)])
    likely = m**sizes * (1 - m) ** (4 - sizes)
    likely[0] = 0
    codes = (result.mask[:, [0, 2, 3, 5]] * 2 ** torch.arange(4)).sum(dim=1)
    assert chi_square_excess(codes, likely / likely.sum()) < 5
    assert not (result.mask & ~maskable).any()
    torch.testing.assert_close(
        result.weights, torch.full((rows,), (1 - (1 - m) ** 4) / m, dtype=torch.float64), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_places_are_masked_with_the_probability_of_the_schedule(schedule):
    noise, rows = requests(8000), 8000
    result = masked(torch.ones(rows, 3, dtype=torch.bool), noise, schedule)
    fraction = get_schedule(schedule).masked_fraction(noise.progress())
    expected = fraction / (1 - (1 - fraction) ** 3)
    errors = (result.mask.double() - expected[:, None]).mean(dim=0) * math.sqrt(rows / 0.25)
    assert errors.abs().max() < 4


@pytest.mark.parametrize(
    ("schedule", "steepest"), [("linear", 1.0), ("cosine", math.pi / 2), (lambda t: (1 - t) ** 2, 2.0)]
)
def test_a_mask_is_never_empty_and_weights_stay_below_the_length_times_the_steepest_slope(schedule, steepest):
    lengths = torch.arange(4000) % (N + 1)
    maskable = torch.arange(N) < lengths[:, None]
    result = masked(maskable, requests(4000), schedule)
    assert torch.equal(result.mask.any(dim=1), lengths > 0)
    assert torch.equal(result.counts, result.mask.sum(dim=1))
    assert torch.equal(result.lengths, lengths)
    assert torch.equal(result.tokens == MASK_ID, result.mask)
    assert (result.tokens[~result.mask] == 7).all()
    assert (result.weights >= 0).all()
    assert (result.weights <= steepest * lengths.double() * (1 + 1e-9)).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_ends_of_the_schedule_mask_everything_and_one_token(schedule):
    noise = Noise(requests(200).keys, torch.tensor([0, -1]).repeat(100))  # the least and the greatest progress
    result = masked(torch.ones(200, N, dtype=torch.bool), noise, schedule)
    assert result.counts.tolist() == [N, 1] * 100
    assert result.weights.isfinite().all()
    assert result.mask[1::2].any(dim=0).sum() > N / 2  # not always the same one


def test_masks_do_not_depend_on_the_batch_or_its_padding():
    corruption = {"no_replace_prob": 0.3, "random_token_prob": 0.3}
    maskable = torch.arange(N) < torch.randint(1, 20, (60, 1), generator=torch.Generator().manual_seed(0))
    noise = requests(60)
    whole = masked(maskable, noise, **corruption)
    for rows in (slice(10, 11), slice(20, 50), torch.arange(59, -1, -1)):
        part = masked(maskable[rows], rows_of(noise, rows), **corruption)
        assert torch.equal(part.tokens, whole.tokens[rows])
        assert torch.equal(part.mask, whole.mask[rows])
        assert torch.equal(part.weights, whole.weights[rows])
    assert torch.equal(masked(maskable[:, :20], noise, **corruption).tokens, whole.tokens[:, :20])


@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
def test_counts_are_known_without_the_tokens(masking):
    maskable, schedule = torch.arange(N) < (torch.arange(300) % (N + 1))[:, None], get_schedule("cosine")
    result = mask_tokens(torch.zeros(300, N).long(), maskable, requests(300), schedule, 1, 3, masking=masking)
    assert torch.equal(masked_counts(maskable, requests(300), schedule, masking), result.counts)


def test_an_unknown_masking_is_refused():
    arguments = torch.zeros(2, 3).long(), torch.ones(2, 3, dtype=torch.bool), requests(2), get_schedule("linear"), 1, 3
    with pytest.raises(ConfigError, match="unknown masking 'binomial'; use exact or bernoulli"):
        mask_tokens(*arguments, masking="binomial")
