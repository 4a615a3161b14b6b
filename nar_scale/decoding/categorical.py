"""Drawing from categorical distributions over a large vocabulary, and what is asked of them, in few passes.

Everything of the size of the vocabulary is float32 and read in order of memory. What decides a draw is float64: in
float32 the unlikely tokens could never be drawn, which lowers the temperature (arXiv:2409.02908, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Statistic = Literal["probability", "entropy", "margin"]
"""What samplers ask of a position: the probability of its token; the entropy in nats; the difference in probability of
the two most probable tokens."""

COLDEST = 1e-3
"""At lower temperatures sampling is practically greedy."""

_NARROW = 512  # values, of which the k-th largest is selected sooner than its place is found by counting
_CUTS = 128  # tries to find a cut; a bracket of float32 numbers has collapsed long before


@dataclass(frozen=True)
class Filters:
    """Which tokens are eligible at a position.

    Attributes:
        mask_id: never eligible.
        top_k: number of most probable tokens that are; None for all. Tokens as probable as the last are too.
        top_p: probability that the most probable tokens must reach together, at the temperature; None for all.
    """

    mask_id: int
    top_k: int | None = None
    top_p: float | None = None


def answer(
    logits: Tensor,
    filters: Filters,
    temperature: float | Tensor,
    uniform: Tensor,
    kept: Tensor | None = None,
    statistic: Statistic | None = None,
) -> Tensor:
    """Draw a token at each position, and compute what is asked of it.

    Statistics are of the distribution over the tokens that the mask and `top_k` leave eligible, before the temperature
    and `top_p`, as x-transformers' confidence is.

    Args:
        logits: `[rows, num_tokens]`, which may be overwritten.
        filters: which tokens are eligible.
        temperature: divides the logits, one or `[rows]`; below 1e-3 the most probable token is taken.
        uniform: float64 `[rows]` in (0, 1), the only source of randomness.
        kept: int64 `[rows]`, tokens that are in place already and are not drawn; -1 where one is drawn.
        statistic: what is asked of the token.

    Returns:
        float64 `[rows, 2]`: the token, the mask token where logits are NaN or infinite, and the statistic, 0 if none is
        asked for.
    """
    logits = logits.float()
    lowest = logits.amin(dim=-1) if _restricts(filters, logits) else None
    logits[:, filters.mask_id] = -math.inf
    eligible = None
    if lowest is not None and filters.top_k is not None:
        eligible = _at_least(logits, _cut_of_largest(logits, filters.top_k, lowest))
    probabilities = None
    if statistic is not None:
        probabilities = _weights(logits, 1.0, eligible)
    tokens = _draw_tokens(logits, filters, temperature, uniform, eligible, probabilities)
    tokens = torch.where(tokens < 0, filters.mask_id, tokens)
    if kept is not None:
        tokens = torch.where(kept >= 0, kept, tokens)
    if probabilities is None or statistic is None:
        return torch.stack((tokens.double(), torch.zeros_like(uniform)), dim=1)
    return torch.stack((tokens.double(), _statistic(statistic, probabilities, tokens)), dim=1)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices by inverting the cumulative distribution: first a block of weights, then a weight in it.

    Sums over a block are float32, what follows is float64, so that no weight is too small to be drawn.

    Args:
        weights: float32 `[rows, n]`, not negative, not all 0 in a row; proportional to the probabilities.
        uniform: float64 `[rows]` in (0, 1).

    Returns:
        int64 `[rows]`; never an index whose weight is 0, and -1 where the weights have no finite sum.
    """
    n = weights.shape[1]
    width = 2 ** math.ceil(math.log2(n) / 2)
    whole = n // width * width
    sums = weights[:, :whole].unflatten(1, (-1, width)).sum(dim=-1)
    if whole < n:
        sums = torch.cat((sums, weights[:, whole:].sum(dim=-1, keepdim=True)), dim=1)
    ends = sums.double().cumsum(dim=1)
    total = ends[:, -1:]
    target = uniform[:, None] * total
    block = torch.searchsorted(ends, target).clamp(max=sums.shape[1] - 1)
    start = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = ((target - start) / sums.gather(1, block).double()).clamp(max=1.0)
    indices = block * width + torch.arange(width, device=weights.device)
    chosen = weights.gather(1, indices.clamp(max=n - 1)).double().masked_fill_(indices >= n, 0.0)
    ends = chosen.cumsum(dim=1)
    place = torch.searchsorted(ends, inside * ends[:, -1:]).clamp(max=width - 1)
    index = (block * width + place)[:, 0].clamp(max=n - 1)
    return index.masked_fill(~(total[:, 0] < math.inf), -1)


def _restricts(filters: Filters, logits: Tensor) -> bool:
    return (filters.top_k is not None and filters.top_k < logits.shape[1] - 1) or filters.top_p is not None


def _weights(logits: Tensor, temperature: float | Tensor, eligible: Tensor | None) -> Tensor:
    if isinstance(temperature, Tensor):
        logits = logits / temperature.float().clamp(min=COLDEST)[:, None]
    elif temperature != 1:
        logits = logits / temperature
    weights = logits.softmax(dim=-1)
    return weights if eligible is None else weights.mul_(eligible)


def _draw_tokens(
    logits: Tensor,
    filters: Filters,
    temperature: float | Tensor,
    uniform: Tensor,
    eligible: Tensor | None,
    probabilities: Tensor | None,
) -> Tensor:
    if not isinstance(temperature, Tensor) and temperature < COLDEST:
        return _most_probable(logits)
    if probabilities is not None and not isinstance(temperature, Tensor) and temperature == 1:
        weights = probabilities
    else:
        weights = _weights(logits, temperature, eligible)
    if filters.top_p is not None and filters.top_p < 1:
        lowest = logits.masked_fill(logits == -math.inf, math.inf).amin(dim=-1)
        weights = weights * _at_least(logits, _cut(logits, weights, filters.top_p * weights.sum(dim=-1), lowest))
    tokens = draw(weights, uniform)
    if isinstance(temperature, Tensor):
        tokens = torch.where(temperature < COLDEST, _most_probable(logits), tokens)
    return tokens


def _most_probable(logits: Tensor) -> Tensor:
    """The token of the largest logit in each row, int64 `[rows]`; -1 where that is not finite."""
    largest, tokens = logits.max(dim=-1)
    return tokens.masked_fill(~largest.isfinite(), -1)


def _statistic(statistic: Statistic, probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Float64 `[rows]`, of probabilities `[rows, num_tokens]` that sum to less than 1 if tokens were excluded."""
    total = probabilities.sum(dim=-1).double()
    if statistic == "probability":
        return probabilities.gather(1, tokens[:, None])[:, 0].double() / total
    if statistic == "margin":
        two = probabilities.topk(2, dim=-1).values.double()
        return (two[:, 0] - two[:, 1]) / total
    surprise = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log_().mul_(probabilities)
    return total.log() - surprise.sum(dim=-1).double() / total


def _at_least(values: Tensor, cut: Tensor) -> Tensor:
    """1 where values are at least the cut of their row and 0 elsewhere, float32: quicker to use than bool."""
    return torch.ge(values, cut[:, None], out=torch.empty_like(values))


def _cut_of_largest(values: Tensor, number: int, lowest: Tensor) -> Tensor:
    """A cut such that the so many largest values, and what equals the last of them, are at least as large; `[rows]`."""
    n = values.shape[1]
    if n <= _NARROW:
        return values.kthvalue(max(1, n - number + 1), dim=1).values
    return _cut(values, None, torch.full_like(lowest, number), lowest)


def _cut(values: Tensor, weights: Tensor | None, target: Tensor, lowest: Tensor) -> Tensor:
    """The largest cut such that the values that are at least as large number or weigh `target`; float32 `[rows]`.

    Found by counting, since in long rows selecting takes tens of times as long as counting does: the bracket is
    narrowed by interpolation and halving in turn.

    Args:
        values: float32 `[rows, n]`.
        weights: float32 `[rows, n]`, or None to count.
        target: float32 `[rows]`.
        lowest: float32 `[rows]`, at most the least value that may be counted.
    """
    low, high = lowest, values.amax(dim=-1).nextafter(torch.full_like(lowest, math.inf))
    above = torch.empty_like(values)

    def measure(cut: Tensor) -> tuple[Tensor, Tensor]:
        torch.ge(values, cut[:, None], out=above)
        count = above.sum(dim=-1)
        return count, count if weights is None else above.mul_(weights).sum(dim=-1)

    low_count, low_size = measure(low)
    high_count = high_size = torch.zeros_like(low)
    for attempt in range(_CUTS):
        middle = low + (high - low) / 2
        done = (low_count - high_count <= 1) | (low_size == target) | (middle <= low) | (middle >= high)
        if bool(done.all()):
            break
        cut = middle
        if attempt % 2:
            guess = high + (low - high) * ((target - high_size) / (low_size - high_size))
            cut = torch.where((guess > low) & (guess < high), guess, middle)
        count, size = measure(cut)
        enough = size >= target
        low, low_count, low_size = (
            torch.where(enough, new, old) for new, old in ((cut, low), (count, low_count), (size, low_size))
        )
        high, high_count, high_size = (
            torch.where(enough, old, new) for new, old in ((cut, high), (count, high_count), (size, high_size))
        )
    return low
