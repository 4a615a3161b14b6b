"""Exact speculative sampling: drafted tokens are verified in one pass, and what stays has the target's distribution.

Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.decoding.filters import is_greedy, sample, sample_probabilities


class Verified(NamedTuple):
    """What is kept of a draft.

    Attributes:
        tokens: int64 `[batch, drafted + 1]`; of each row the first `accepted + 1` count, the rest is -1.
        accepted: int64 `[batch]`, drafted tokens that are kept, which one more token follows.
    """

    tokens: Tensor
    accepted: Tensor


class VerificationNoise(NamedTuple):
    """Random numbers for the places of a draft, each a function of the request and of the place in its sequence.

    A place may be drafted several times, since what follows a refused token is drafted again. Nothing that is kept
    depends on the numbers of later places, so that the same ones can be used again.

    Attributes:
        draw: uniform in (0, 1), float64 `[batch, drafted + 1]`, for tokens that are drawn from the target.
        accept: the same, float64 `[batch, drafted]`, for whether a drafted token is kept.
    """

    draw: Tensor
    accept: Tensor


def propose(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw drafted tokens, and tell from what.

    Args:
        logits: `[..., num_tokens]`, filtered as the draft is to be.
        temperature: of the draft, which needs not be that of the request; 0 for the most probable token.
        uniform: float64 `[...]` in (0, 1), others than those of `VerificationNoise`.

    Returns:
        tokens, int64 `[...]`, and their distributions, float64 `[..., num_tokens]`.
    """
    if is_greedy(temperature):
        tokens = logits.argmax(dim=-1)
        return tokens, F.one_hot(tokens, logits.shape[-1]).double()
    probabilities = (logits.double() / temperature).softmax(dim=-1)
    return sample_probabilities(probabilities, uniform), probabilities


def verify(
    drafted: Tensor,
    logits: Tensor,
    temperature: float,
    noise: VerificationNoise,
    *,
    proposals: Tensor | None = None,
    counts: Tensor | None = None,
) -> Verified:
    """Keep the beginning of a draft, and draw one more token.

    The token x at a place is kept with probability min(1, p(x) / q(x)), p being the target's distribution and q that of
    the draft; the first that is not kept is replaced by one from max(p - q, 0), normalised, and where all are kept one
    from p follows (arXiv:2211.17192, algorithm 1). What is kept is distributed as if drawn token by token from p,
    if q depends on the tokens before the draft and on those of the draft before its place alone. Rows do not depend on
    each other.

    Args:
        drafted: int64 `[batch, drafted]`.
        logits: of the target at the places of the draft and the one after it, `[batch, drafted + 1, num_tokens]`, with
            the request's filters applied.
        temperature: of the request; at 0 the tokens are those of greedy decoding, whatever was drafted.
        noise: the request's.
        proposals: what each token was drawn from, float64 `[batch, drafted, num_tokens]`; None for tokens that were not
            drawn at random. The result is then, token by token, what `sample` draws with `noise.draw`.
        counts: int64 `[batch]`, how many tokens of each row are a draft; None for all.
    """
    if proposals is None or is_greedy(temperature):
        return match(drafted, sample(logits, temperature, noise.draw), counts)
    offered = _offered(drafted, counts)
    target = (logits.double() / temperature).softmax(dim=-1)
    of_drafted = [each.gather(2, drafted[..., None])[..., 0] for each in (target[:, :-1], proposals)]
    accepted = _leading(offered & (noise.accept * of_drafted[1] < of_drafted[0]))
    return _joined(drafted, accepted, _draw_following(target, proposals, accepted, offered, noise.draw))


def match(drafted: Tensor, answers: Tensor, counts: Tensor | None = None) -> Verified:
    """Keep the beginning of a draft that is what the target itself has drawn, and the token drawn after it.

    The result is what the target draws, token by token, so that nothing is asked of the draft.

    Args:
        drafted: int64 `[batch, drafted]`.
        answers: drawn from the target at the places of the draft and the one after it, int64 `[batch, drafted + 1]`.
        counts: int64 `[batch]`, how many tokens of each row are a draft; None for all.
    """
    accepted = _leading(_offered(drafted, counts) & (answers[:, :-1] == drafted))
    return _joined(drafted, accepted, answers.gather(1, accepted[:, None]))


def _offered(drafted: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None:
        return torch.ones_like(drafted, dtype=torch.bool)
    return torch.arange(drafted.shape[1], device=drafted.device) < counts[:, None]


def _joined(drafted: Tensor, accepted: Tensor, following: Tensor) -> Verified:
    tokens = F.pad(drafted, (0, 1)).scatter(1, accepted[:, None], following)
    places = torch.arange(tokens.shape[1], device=drafted.device)
    return Verified(tokens.masked_fill(places > accepted[:, None], -1), accepted)


def _leading(kept: Tensor) -> Tensor:
    """How many of the first of each row are true, int64 `[batch]`."""
    return kept.long().cumprod(dim=1).sum(dim=1)


def _draw_following(target: Tensor, proposals: Tensor, accepted: Tensor, offered: Tensor, uniform: Tensor) -> Tensor:
    """The token after those that are kept, int64 `[batch, 1]`."""
    place = accepted[:, None]
    wanted = _at(target, place)
    refused = offered.sum(dim=1, keepdim=True) > place
    proposed = _at(F.pad(proposals, (0, 0, 0, 1)), place)
    residual = (wanted - proposed).clamp(min=0)
    # rounding can leave nothing where both are the same
    residual = torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, wanted)
    return sample_probabilities(torch.where(refused[..., None], residual, wanted), uniform.gather(1, place))


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Of `[batch, n, num_tokens]` what stands at a place of each row, `[batch, 1]`; `[batch, 1, num_tokens]`."""
    return values.gather(1, place[..., None].expand(-1, -1, values.shape[-1]))
