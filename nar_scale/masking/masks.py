"""Which tokens of a batch are masked, and what is put in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nar_scale.errors import ConfigError
from nar_scale.masking.noise import Noise
from nar_scale.masking.schedules import Schedule

Masking = Literal["exact", "bernoulli"]

# streams of one sequence's noise, one for each purpose
_ORDER, _NO_REPLACE, _RANDOM_PLACE, _RANDOM_TOKEN, _COINS = range(5)


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with some tokens hidden.

    Attributes:
        tokens: int64 `[batch, n]`, what the net sees.
        mask: bool `[batch, n]`, the tokens to predict.
        counts: int64 `[batch]`, masked tokens of each sequence.
        lengths: int64 `[batch]`, maskable tokens of each sequence.
        weights: float64 `[batch]`; the cross-entropies of a sequence's masked tokens, summed and times this, have the
            sequence's NELBO in nats as their expectation.
    """

    tokens: Tensor
    mask: Tensor
    counts: Tensor
    lengths: Tensor
    weights: Tensor


def random_subset(maskable: Tensor, counts: Tensor, noise: Noise) -> Tensor:
    """Choose `counts[i]` positions of row i uniformly among the maskable ones.

    Args:
        maskable: bool `[batch, n]`.
        counts: int64 `[batch]`, at most the number of maskable positions of the row.

    Returns:
        bool `[batch, n]`.
    """
    import einx  # not at the top: it imports torch's compiler, which takes seconds

    order = noise.bits(maskable.shape[1]).masked_fill(~maskable, torch.iinfo(torch.int64).max)
    ranks = order.argsort(dim=1, stable=True).argsort(dim=1)
    return einx.less("b n, b -> b n", ranks, counts) & maskable


def masked_counts(maskable: Tensor, noise: Noise, schedule: Schedule, masking: Masking) -> Tensor:
    """How many tokens `mask_tokens` will mask in each sequence, int64 `[batch]`; arguments as there."""
    if masking == "exact":
        return schedule.masked_count(noise.progress(), maskable.sum(dim=1))
    return choose_masked(maskable, noise, schedule, masking)[0].sum(dim=1)


def choose_masked(maskable: Tensor, noise: Noise, schedule: Schedule, masking: Masking) -> tuple[Tensor, Tensor]:
    """Which tokens `mask_tokens` will mask, bool `[batch, n]`, and the loss weight of each sequence, float64 `[batch]`.

    The weight multiplies the cross-entropy of a masked token: `Schedule.loss_weight` of the number masked, or
    `continuous_loss_weight` where each token is masked independently.

    Arguments as there.

    Raises:
        ConfigError: an unknown `masking`.
    """
    lengths = maskable.sum(dim=1)
    progress = noise.progress()
    noise = noise.derive(_ORDER)
    if masking == "exact":
        counts = schedule.masked_count(progress, lengths)
        return random_subset(maskable, counts, noise), schedule.loss_weight(counts, lengths)
    if masking != "bernoulli":
        raise ConfigError(f"unknown masking {masking!r}; use {' or '.join(get_args(Masking))}")
    fraction = schedule.masked_fraction(progress)
    some = -torch.expm1(lengths * torch.log1p(-fraction))  # probability that any token is masked
    uniform = noise.uniform(maskable.shape[1]).masked_fill(~maskable, torch.inf)
    return _lowered(uniform, lengths, some) < fraction[:, None], schedule.continuous_loss_weight(progress) * some


def _lowered(uniform: Tensor, lengths: Tensor, some: Tensor) -> Tensor:
    """Independent uniform numbers `[batch, n]`, given that their least is below m, where `some` = 1 - (1 - m)^length.

    The least of n has the distribution function 1 - (1 - u)^n, and given it the others are uniform above it.
    """
    least = uniform.amin(dim=1, keepdim=True).clamp(max=1.0)
    exponents = lengths.clamp(min=1)[:, None]
    quantile = -torch.expm1(exponents * torch.log1p(-least))
    lowered = -torch.expm1(torch.log1p(-quantile * some[:, None]) / exponents)
    return lowered + (uniform - least) * (1 - lowered) / (1 - least).clamp(min=1e-300)


def mask_tokens(
    tokens: Tensor,
    maskable: Tensor,
    noise: Noise,
    schedule: Schedule,
    mask_id: int,
    num_tokens: int,
    no_replace_prob: float = 0.0,
    random_token_prob: float = 0.0,
    masking: Masking = "exact",
) -> MaskedBatch:
    """Hide a part of each sequence's n maskable tokens, t stratified over the batch.

    `exact` masks `ceil(m(t) n)` of them. `bernoulli` masks each with probability m(t), given that at least one is:
    an empty mask teaches nothing, and its probability goes into the weight, which so stays below n
    times the steepest -m'(t).

    With BERT's corruption (arXiv:1810.04805) some masked tokens are left as they are and some replaced by
    random ones, each in half of the sequences; they are still predicted.

    Args:
        tokens: int64 `[batch, n]`.
        maskable: bool `[batch, n]`; false for padding and for positions that are given.
        mask_id: the id that hides a token; never drawn as a random token.
        num_tokens: size of the vocabulary, the mask included.
        no_replace_prob: fraction of the masked tokens left in place.
        random_token_prob: fraction of the masked tokens replaced by random ones.
        masking: how the masked tokens are chosen.

    Raises:
        ConfigError: an unknown `masking`.
    """
    mask, weights = choose_masked(maskable, noise, schedule, masking)
    counts = mask.sum(dim=1)

    hidden = mask
    coins = noise.derive(_COINS).uniform(2) < 0.5
    if no_replace_prob > 0:
        kept = (counts * no_replace_prob * coins[:, 0]).long()
        hidden = hidden & ~random_subset(mask, kept, noise.derive(_NO_REPLACE))
    corrupted = tokens
    if random_token_prob > 0:
        replaced = (counts * random_token_prob * coins[:, 1]).long()
        random_places = random_subset(hidden, torch.minimum(replaced, hidden.sum(dim=1)), noise.derive(_RANDOM_PLACE))
        random_tokens = (noise.derive(_RANDOM_TOKEN).uniform(tokens.shape[1]) * (num_tokens - 1)).long()
        random_tokens = random_tokens + (random_tokens >= mask_id)
        corrupted = torch.where(random_places, random_tokens, corrupted)
        hidden = hidden & ~random_places
    return MaskedBatch(corrupted.masked_fill(hidden, mask_id), mask, counts, maskable.sum(dim=1), weights)
