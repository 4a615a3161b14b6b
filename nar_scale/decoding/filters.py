"""Logit filters, contrastive decoding and sampling.

A filter maps logits `[..., num_tokens]` to logits of the same shape, in which those of excluded tokens are -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from nar_scale.errors import ConfigError

LogitFilter = Callable[..., Tensor]
_COLDEST = 1e-3  # at lower temperatures sampling is practically greedy


def top_k(logits: Tensor, frac_num_tokens: float = 0.1, k: int | None = None) -> Tensor:
    """Keep the k largest logits.

    Args:
        logits: `[..., num_tokens]`.
        frac_num_tokens: keeps `ceil(frac_num_tokens * num_tokens)` logits where `k` is not given.
        k: number of tokens to keep.

    Raises:
        ConfigError: `k` is below 1, or `frac_num_tokens` not above 0.
    """
    k = kept_by_top_k(logits.shape[-1], frac_num_tokens, k)
    if k == logits.shape[-1]:
        return logits
    values, indices = logits.topk(k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, indices, values)


def kept_by_top_k(num_tokens: int, frac_num_tokens: float = 0.1, k: int | None = None) -> int:
    """How many of the logits `top_k` keeps, at least one; arguments and errors as there."""
    if k is None:
        _check("frac_num_tokens of top_k", frac_num_tokens > 0, frac_num_tokens, "above 0")
        k = math.ceil(frac_num_tokens * num_tokens)
    _check("k of top_k", k >= 1, k, "at least 1")
    return min(k, num_tokens)


def top_p(logits: Tensor, thres: float = 0.9) -> Tensor:
    """Keep the smallest set of most probable tokens whose total probability reaches `thres` (arXiv:1904.09751).

    The token whose probability crosses the threshold is kept.

    Raises:
        ConfigError: `thres` is outside (0, 1].
    """
    _check("thres of top_p", 0 < thres <= 1, thres, "above 0 and at most 1")
    ordered, indices = logits.sort(descending=True, dim=-1)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    return torch.full_like(logits, -math.inf).scatter(
        -1, indices, ordered.masked_fill((before >= thres) & (before > 0), -math.inf)
    )


def min_p(logits: Tensor, min_p: float = 0.1) -> Tensor:
    """Keep the tokens that are at least `min_p` times as probable as the most probable one (arXiv:2407.01082).

    Raises:
        ConfigError: `min_p` is outside [0, 1].
    """
    _check("min_p", 0 <= min_p <= 1, min_p, "from 0 to 1")
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), -math.inf)


def top_a(logits: Tensor, min_p_pow: float = 2.0, min_p_ratio: float = 0.02) -> Tensor:
    """Keep the tokens whose probability is at least `min_p_ratio * p_max ** min_p_pow`, p_max being the largest.

    Raises:
        ConfigError: `min_p_pow` is below 1, so that not even the most probable token might be kept, or `min_p_ratio`
            outside [0, 1].
    """
    _check("min_p_pow of top_a", min_p_pow >= 1, min_p_pow, "at least 1")
    _check("min_p_ratio of top_a", 0 <= min_p_ratio <= 1, min_p_ratio, "from 0 to 1")
    probabilities = logits.softmax(dim=-1)
    limit = probabilities.amax(dim=-1, keepdim=True) ** min_p_pow * min_p_ratio
    return logits.masked_fill(probabilities < limit, -math.inf)


def _check(name: str, fits: bool, value: float, allowed: str) -> None:
    if not fits:
        raise ConfigError(f"{name} cannot be {value}; give a number {allowed}")


FILTERS: dict[str, LogitFilter] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "top_a": top_a}


def get_filter(name: str | LogitFilter | None) -> LogitFilter:
    """The filter with that name.

    Args:
        name: a key of `FILTERS`; a callable, which is returned as it is; or None for a filter that keeps all tokens.

    Raises:
        ConfigError: there is no filter with that name.
    """
    if name is None:
        return lambda logits: logits
    if callable(name):
        return name
    if name not in FILTERS:
        raise ConfigError(f"unknown logit filter {name!r}; use one of {', '.join(FILTERS)} or a callable")
    return FILTERS[name]


def eligible(k: int | None, p: float | None) -> list[LogitFilter]:
    """The filters that keep the `k` most probable tokens, and of these the ones that together reach probability `p`.

    Args:
        k: number of tokens; None for all.
        p: probability in (0, 1]; None or 1 for all.
    """
    return [*([] if k is None else [partial(top_k, k=k)]), *([] if p in (None, 1) else [partial(top_p, thres=p)])]


def contrastive(expert_logits: Tensor, amateur_logits: Tensor, alpha: float = 0.1, beta: float = 0.5) -> Tensor:
    """Logits of contrastive decoding: (1 + beta) expert - beta amateur (arXiv:2309.09117, appendix A, algorithm 2).

    Args:
        expert_logits: `[..., num_tokens]`.
        amateur_logits: `[..., num_tokens]`, of a weaker model.
        alpha: excludes tokens that the expert gives less than `alpha` times the probability of its most probable one.
        beta: strength of the contrast; 0 leaves the expert's logits as they are.

    Raises:
        ConfigError: `alpha` is outside (0, 1], or `beta` not finite.
    """
    _check("alpha", 0 < alpha <= 1, alpha, "above 0 and at most 1")
    _check("beta", math.isfinite(beta), beta, "that is finite")
    cutoff = math.log(alpha) + expert_logits.amax(dim=-1, keepdim=True)
    difference = (1 + beta) * expert_logits - beta * amateur_logits
    return difference.masked_fill(expert_logits < cutoff, -math.inf)


def draw(logits: Tensor, temperature: float, uniform: Tensor | None, filters: Sequence[LogitFilter] = ()) -> Tensor:
    """Draw a token from filtered logits.

    What the first filter excludes is not looked at again if it is `top_k` (or a `partial` of it).

    Args:
        logits: `[..., num_tokens]`.
        temperature: divides the logits; 0 for the most probable token, and then there is no filter.
        uniform: float64 `[...]` in (0, 1); None at temperature 0.
        filters: are applied one after another.

    Returns:
        int64 `[...]`.
    """
    if uniform is None or is_greedy(temperature):
        return logits.argmax(dim=-1)
    first = filters[0] if filters else None
    if first is not top_k and getattr(first, "func", None) is not top_k:
        return sample(filtered(logits, filters), temperature, uniform)
    k = kept_by_top_k(logits.shape[-1], **getattr(first, "keywords", {}))
    if k == logits.shape[-1]:  # as without a filter
        return sample(filtered(logits, filters[1:]), temperature, uniform)
    # on CPUs ordering what was selected takes as long as selecting it; on GPUs how it stands is not defined otherwise
    values, indices = logits.topk(k, dim=-1, sorted=logits.is_cuda)
    drawn = sample(filtered(values, filters[1:]), temperature, uniform)
    return indices.gather(-1, drawn[..., None])[..., 0]


def filtered(logits: Tensor, filters: Sequence[LogitFilter]) -> Tensor:
    """Logits `[..., num_tokens]` after filters that are applied one after another."""
    for logit_filter in filters:
        logits = logit_filter(logits)
    return logits


def sample(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Draw tokens by inverting the cumulative distribution in float64.

    Args:
        logits: `[..., num_tokens]`.
        temperature: divides the logits; below 1e-3 the most probable token is returned.
        uniform: float64 `[...]` in (0, 1), the only source of randomness.

    Returns:
        int64 `[...]`; never a token whose logit is -inf.
    """
    if is_greedy(temperature):
        return logits.argmax(dim=-1)
    return sample_probabilities((logits.double() / temperature).softmax(dim=-1), uniform)


def is_greedy(temperature: float) -> bool:
    """Whether sampling at this temperature returns the most probable token."""
    return temperature < _COLDEST


def sample_probabilities(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw tokens by inverting the cumulative distribution.

    Args:
        probabilities: float64 `[..., num_tokens]`, not all 0; they need not be normalised.
        uniform: float64 `[...]` in (0, 1), the only source of randomness.

    Returns:
        int64 `[...]`; never a token whose probability is 0.
    """
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=False)[..., 0].clamp(max=probabilities.shape[-1] - 1)
