"""Iterative unmasking: Mask-Predict (arXiv:1904.09324) and MaskGIT (arXiv:2202.04200) decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from nar_scale.decoding.filters import sample, top_k
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise, Schedule

Predict = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Maps tokens, int64 `[batch, n]`, and the embeddings of the previous call (None in the first one) to logits
`[batch, n, num_tokens]` and embeddings `[batch, n, dim]`."""

Critic = Callable[[Tensor], Tensor]
"""Maps tokens, int64 `[batch, n]`, to the logit that each of them is wrong, `[batch, n]`."""

Sampler = Literal["confidence", "random"]
"""How the tokens that are masked again are chosen, see `unmask`."""

_ROUNDING = 1e-6  # in tokens, so that (1 - 5/6) * 6 counts as 1 and not as a little less


class Unmasked(NamedTuple):
    """The result of `unmask`.

    Attributes:
        tokens: int64 `[batch, n]`, none of which is the mask token.
        network_calls: int64 `[batch]`, the calls in which a sequence still had masked tokens.
    """

    tokens: Tensor
    network_calls: Tensor


def unmask(
    predict: Predict,
    tokens: Tensor,
    *,
    mask_id: int,
    schedule: Schedule,
    steps: int,
    noise: Noise,
    sampler: Sampler = "confidence",
    start_temperature: float = 1.0,
    filter_thres: float = 0.7,
    can_mask_prev_unmasked: bool = False,
    critic: Critic | None = None,
    noise_level_scale: float = 1.0,
) -> Unmasked:
    """Fill in every mask token, step by step.

    Each network call predicts all masked tokens and samples them; those that are least trusted are then masked again,
    ever fewer of them, as the schedule says. Each call reveals at least one token, so that there are at most `steps`
    calls and never more calls than masked tokens.

    Args:
        predict: the network.
        tokens: int64 `[batch, n]`; tokens other than `mask_id` are given and stay as they are.
        mask_id: the mask token, which is never sampled.
        schedule: the masked fraction that remains after each step.
        steps: network calls at most.
        noise: the source of all randomness, so that a sequence comes out the same in any batch.
        sampler: which tokens are masked again. `confidence` masks those with the lowest probability, or with the
            highest logit of the critic, and lowers the temperature linearly to 0 (MaskGIT). `random` masks any, at a
            constant temperature, which samples from the model's own distribution (ancestral sampling of MDLM,
            arXiv:2406.07524).
        start_temperature: of the first step.
        filter_thres: keeps the `ceil((1 - filter_thres) * num_tokens)` most probable tokens at each position.
        can_mask_prev_unmasked: whether tokens that were revealed in earlier steps may be masked again.
        critic: decides in place of the probabilities which tokens are masked again.
        noise_level_scale: scale of the Gumbel noise on the critic's logits, which falls linearly to 0 too.

    Raises:
        ConfigError: an unknown sampler, or less than one step.
    """
    if sampler not in get_args(Sampler):
        raise ConfigError(f"unknown sampler {sampler!r}; use {' or '.join(get_args(Sampler))}")
    if steps < 1:
        raise ConfigError(f"decoding needs at least 1 step, not {steps}")
    generated = tokens == mask_id
    masked = generated
    total = generated.sum(dim=1)
    embeddings: Tensor | None = None
    calls = torch.zeros_like(total)
    for step in range(steps):
        if not bool(masked.any()):
            break
        logits, embeddings = predict(tokens, embeddings)
        calls += masked.any(dim=1)
        anneal = (steps - 1 - step) / steps
        step_noise = noise.derive(step)
        logits = logits.float()
        logits[..., mask_id] = -math.inf
        logits = top_k(logits, 1 - filter_thres)
        temperature = start_temperature * (anneal if sampler == "confidence" else 1.0)
        drawn = sample(logits, temperature, step_noise.uniform(tokens.shape[1]))
        tokens = torch.where(masked, drawn, tokens)

        progress = torch.tensor((step + 1) / steps, dtype=torch.float64, device=tokens.device)
        left = (schedule.masked_fraction(progress) * total + _ROUNDING).floor().long()
        left = torch.minimum(left, (masked.sum(dim=1) - 1).clamp(min=0)) * (step + 1 < steps)
        if sampler == "random":
            doubt = step_noise.derive(0).uniform(tokens.shape[1])
        elif critic is not None:
            doubt = critic(tokens).double()
            doubt = doubt + noise_level_scale * anneal * step_noise.derive(0).gumbel(tokens.shape[1])
        else:
            doubt = 1 - logits.softmax(dim=-1).gather(-1, tokens[..., None])[..., 0].double()
        candidates = generated if can_mask_prev_unmasked else masked
        masked = _largest(doubt.masked_fill(~candidates, -math.inf), left)
        tokens = tokens.masked_fill(masked, mask_id)
    return Unmasked(tokens, calls)


def _largest(scores: Tensor, counts: Tensor) -> Tensor:
    """The `counts[i]` largest scores of row i, as bool `[batch, n]`."""
    import einx  # not at the top: it imports torch's compiler, which takes seconds

    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return einx.less("b n, b -> b n", ranks, counts)
