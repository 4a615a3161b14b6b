import math
from itertools import combinations

import pytest
import torch

from nar_scale.masking import get_schedule, mask_tokens, random_subset

from .helpers import chi_square_excess, requests, rows_of

MASK_ID, NUM_TOKENS, N = 20, 50, 40


def masked(rows=500, *, maskable=None, tokens=7, schedule="linear", noise=None, **corruption):
    maskable = torch.ones(rows, N, dtype=torch.bool) if maskable is None else maskable
    tokens = torch.full(maskable.shape, tokens)
    noise = noise or requests(len(maskable))
    return mask_tokens(tokens, maskable, noise, get_schedule(schedule), MASK_ID, NUM_TOKENS, **corruption)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_exact_number_is_masked_and_never_what_is_given(schedule):
    maskable = requests(500, seed=1).uniform(N) < 0.5
    maskable[0], maskable[1] = False, True
    result = masked(maskable=maskable, schedule=schedule)
    progress, lengths = requests(500).progress(), maskable.sum(dim=1)
    fractions = 1 - progress if schedule == "linear" else torch.cos(math.pi * progress / 2)
    assert result.mask.sum(dim=1).tolist() == [math.ceil(m * n) for m, n in zip(fractions.tolist(), lengths.tolist())]
    assert torch.equal(result.counts, result.mask.sum(dim=1))
    assert torch.equal(result.lengths, lengths)
    assert not (result.mask & ~maskable).any()
    assert torch.equal(result.tokens == MASK_ID, result.mask)
    assert (result.tokens[~result.mask] == 7).all()


def test_masks_do_not_depend_on_the_batch_or_its_padding():
    corruption = {"no_replace_prob": 0.3, "random_token_prob": 0.3}
    maskable = torch.arange(N) < torch.randint(1, 20, (60, 1), generator=torch.Generator().manual_seed(0))
    whole, noise = masked(maskable=maskable, **corruption), requests(60)
    for rows in (slice(10, 11), slice(20, 50), torch.arange(59, -1, -1)):
        part = masked(maskable=maskable[rows], noise=rows_of(noise, rows), **corruption)
        assert torch.equal(part.tokens, whole.tokens[rows])
        assert torch.equal(part.mask, whole.mask[rows])
    narrow = masked(maskable=maskable[:, :20], **corruption)
    assert torch.equal(narrow.tokens, whole.tokens[:, :20])


def test_every_subset_is_equally_likely():
    maskable = torch.tensor([True, False, True, True, True]).expand(6000, 5)
    subsets = random_subset(maskable, torch.full((6000,), 2), requests(6000))
    codes = (subsets * 2 ** torch.arange(5)).sum(dim=1)
    possible = {2**i + 2**j: number for number, (i, j) in enumerate(combinations([0, 2, 3, 4], 2))}
    drawn = torch.tensor([possible[code] for code in codes.tolist()])
    assert chi_square_excess(drawn, torch.full((6,), 1 / 6)) < 5


def test_some_masked_tokens_stay_in_half_of_the_sequences():
    result = masked(2000, no_replace_prob=0.25)
    kept = (result.mask & (result.tokens == 7)).sum(dim=1)
    expected = (result.counts * 0.25).long()
    assert ((kept == 0) | (kept == expected)).all()
    assert float((kept > 0).sum() / (expected > 0).sum()) == pytest.approx(0.5, abs=0.06)
    assert (result.tokens[result.mask & (result.tokens != 7)] == MASK_ID).all()


def test_some_masked_tokens_become_random_ones_but_never_the_mask():
    result = masked(4000, random_token_prob=0.25)
    replaced = (result.mask & (result.tokens != MASK_ID)).sum(dim=1)
    expected = (result.counts * 0.25).long()
    assert ((replaced == 0) | (replaced == expected)).all()
    assert float((replaced > 0).sum() / (expected > 0).sum()) == pytest.approx(0.5, abs=0.04)
    likely = torch.full((NUM_TOKENS,), 1 / (NUM_TOKENS - 1))
    likely[MASK_ID] = 0
    assert chi_square_excess(result.tokens[result.mask & (result.tokens != MASK_ID)], likely) < 5
    assert (result.tokens[~result.mask] == 7).all()


def test_both_corruptions_together_leave_the_rest_hidden():
    result = masked(4000, no_replace_prob=0.25, random_token_prob=0.5)
    hidden = (result.mask & (result.tokens == MASK_ID)).sum(dim=1)
    kept, replaced = (result.counts * 0.25).long(), (result.counts * 0.5).long()
    possible = [result.counts, result.counts - kept, result.counts - replaced, result.counts - kept - replaced]
    outcomes = torch.stack([hidden == count for count in possible], dim=1)[result.counts >= 8]
    assert outcomes.any(dim=1).all()
    assert outcomes.double().mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=0.04)
