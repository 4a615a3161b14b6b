"""Iterative demasking: Mask-Predict (arXiv:1904.09324) and MaskGIT (arXiv:2202.04200) decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import einx
import torch
from torch import Tensor

from nar_scale.decoding.filters import sample, top_k
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise, Schedule

Predict = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Maps tokens `[batch, n]` and the embeddings of the call before (None at first) to logits
`[batch, n, num_tokens]` and embeddings `[batch, n, dim]`."""

Critic = Callable[[Tensor], Tensor]
"""Maps tokens `[batch, n]` to the logit that each is wrong, `[batch, n]`."""


Sampler = Literal["confidence", "random"]


_ROUNDING = 1e-6  # of a token: (1 - 5/6) * 6 is 1, not a little less


class Demasked(NamedTuple):
    """Generated tokens, int64 `[batch, n]` without any mask token, and the network calls each took, `[batch]`."""

    tokens: Tensor
    network_calls: Tensor


def demask(
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
) -> Demasked:
    """Fill in every mask token, step by step.

    Each call predicts all masked tokens, samples them, and masks some of them again, ever fewer as the schedule
    says. At least one token is revealed in each call, so there are at most `steps` calls and never more than
    masks.

    Args:
        predict: the net.
        tokens: int64 `[batch, n]`; what is not `mask_id` is given and stays as it is.
        noise: all randomness; a sequence comes out the same in any batch.
        sampler: which tokens are masked again. `confidence`: those the model is least sure of, or a critic
            doubts most, at a temperature that falls linearly to 0 (MaskGIT). `random`: any, at a constant
            temperature, which samples from the model's own distribution (ancestral sampling, MDLM).
        filter_thres: keeps the likeliest `ceil((1 - filter_thres) * num_tokens)` tokens at each position.
        can_mask_prev_unmasked: let tokens revealed earlier be masked again.
        critic: judges tokens instead of the model's own confidence.
        noise_level_scale: scale of the Gumbel noise on the critic's judgement, falling to 0 as well.

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
    return Demasked(tokens, calls)


def _largest(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts[i]` largest scores of row i; bool `[batch, n]`."""
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return einx.less("b n, b -> b n", ranks, counts)
