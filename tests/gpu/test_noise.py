"""Noise, masks and the order of samples are functions of counters: the same numbers on a GPU as on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nar_scale.masking import Noise, get_schedule, mask_tokens

BATCH, N, MASK = 64, 257, 256


def noise_on(device: torch.device) -> Noise:
    ids = torch.arange(BATCH, device=device)
    return Noise.of_samples(3, ids % 5, ids * 1_000_003, ids + 2**40)


@pytest.mark.parametrize("stream", [0, 7, 2**40])
def test_bits_and_uniform_numbers_are_equal(device: torch.device, stream: int) -> None:
    """Integer arithmetic modulo 2^64, and a conversion to float64 that is exact: nothing is rounded."""
    ours, expected = noise_on(device).derive(stream), noise_on(torch.device("cpu")).derive(stream)
    assert torch.equal(ours.bits(N).cpu(), expected.bits(N))
    assert torch.equal(ours.uniform(N).cpu(), expected.uniform(N))
    assert torch.equal(ours.progress().cpu(), expected.progress())
    assert torch.equal(ours.split(4).keys.cpu(), expected.split(4).keys)


def test_gumbel_numbers_are_equal_but_for_the_last_digits(device: torch.device) -> None:
    """A logarithm in float64 is right to an ulp or two, on each device to others.

    An ulp of the inner one, 2.2e-16 of it, is that much in the outer one, absolutely; with the outer one's own rounding
    that is less than 1e-15 (1 + |g|).
    """
    ours, expected = noise_on(device).gumbel(N).cpu(), noise_on(torch.device("cpu")).gumbel(N)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def masked_on(device: torch.device, schedule: str, masking: str) -> tuple[Tensor, ...]:
    tokens = (torch.arange(BATCH * N, device=device) % MASK).view(BATCH, N)
    lengths = torch.arange(BATCH, device=device) * 4 + 1
    masked = mask_tokens(
        tokens,
        torch.arange(N, device=device) < lengths[:, None],
        noise_on(device),
        get_schedule(schedule),
        MASK,
        MASK + 1,
        no_replace_prob=0.15,
        random_token_prob=0.1,
        masking=masking,  # type: ignore[arg-type]
    )
    return tuple(each.cpu() for each in (masked.tokens, masked.mask, masked.counts, masked.lengths, masked.weights))


@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_masks_are_equal(device: torch.device, schedule: str, masking: str) -> None:
    """A cosine or a logarithm may differ by an ulp: in one of 10^13 masks of 257 tokens, and in weights."""
    *ours, weights = masked_on(device, schedule, masking)
    *expected, expected_weights = masked_on(torch.device("cpu"), schedule, masking)
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-9, atol=0.0)
    assert 0 < ours[1].sum() < ours[1].numel()
