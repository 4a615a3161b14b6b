"""Iterative unmasking: the loop of network calls in which a sampler reveals tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nar_scale.decoding.categorical import Filters, answer
from nar_scale.decoding.options import StepCallback
from nar_scale.decoding.samplers import Call, Sampler
from nar_scale.errors import NumericalError
from nar_scale.masking import Noise

_TILE = 16  # rows; matrix products of fewer than 12 rows are rounded in another way on CPUs
_CHUNK_ON_CPU, _CHUNK = 2**22, 2**26  # logits that exist at a time; on a CPU they should stay in its cache
_CACHED = 2**20  # logits that are looked at together, several times


class Network(Protocol):
    """A network that predicts masked tokens of a batch, whose conditions and earlier results it remembers."""

    num_tokens: int
    """Size of the vocabulary."""

    shrinks: bool
    """Whether finished sequences may leave the batch; false where each size of batch would be compiled anew."""

    def embed(self, tokens: Tensor, shadows: bool = False) -> Tensor:
        """Embeddings of tokens, `[batch, n, dim]`, with shadows `[batch, 2 n, dim]`.

        Args:
            tokens: int64 `[batch, n]`.
            shadows: add a mask token in the place of each token, which sees all tokens but that one, and which no other
                sees (arXiv:2507.18578): what the network would say if that token alone were masked.
        """

    def read(self, embeddings: Tensor, reduce: Callable[..., Tensor], *per_row: Tensor) -> Tensor:
        """What `reduce` makes of the logits of embeddings, `[rows, ...]`.

        Args:
            embeddings: `[rows, dim]`.
            reduce: maps logits `[rows, num_tokens]` and `per_row` to `[rows, ...]`.
            per_row: tensors `[rows, ...]`.
        """

    def judge(self, tokens: Tensor) -> Tensor:
        """The critic's logit that each of the tokens, int64 `[batch, n]`, is wrong; `[batch, n]`."""

    def select(self, rows: Tensor) -> None:
        """Keep these sequences of the batch, int64 `[new_batch]`."""


class Unmasked(NamedTuple):
    """The result of `unmask`.

    Attributes:
        tokens: int64 `[batch, n]`, none of which is the mask token.
        network_calls: int64 `[batch]`, the calls in which a sequence still had masked tokens.
    """

    tokens: Tensor
    network_calls: Tensor


@torch.no_grad()
def unmask(
    network: Network,
    tokens: Tensor,
    sampler: Sampler,
    filters: Filters,
    noise: Noise,
    *,
    temperature: float = 1.0,
    callback: StepCallback | None = None,
) -> Unmasked:
    """Fill in every mask token, call by call.

    Each network call predicts the masked tokens that the sampler asks about, of which it reveals at least one. Finished
    sequences leave the batch.

    Args:
        network: predicts masked tokens; its conditions are of the same batch.
        tokens: int64 `[batch, n]`; tokens other than the mask token are given and stay as they are.
        sampler: decides which tokens are revealed.
        filters: which tokens are eligible, and the mask token, which never is.
        noise: the source of all randomness, so that a sequence comes out the same in any batch.
        temperature: divides the logits, at least 0.
        callback: watches; masked tokens are the mask token.

    Raises:
        NumericalError: the network computes NaN or infinity.
    """
    tokens, mask_id = tokens.clone(), filters.mask_id
    generated = tokens == mask_id
    masked, calls = generated.clone(), torch.zeros_like(tokens[:, 0])
    active = torch.arange(len(tokens), device=tokens.device)
    for number in count():
        unfinished = masked[active].any(dim=1)
        left = int(unfinished.sum())
        if left == 0:
            break
        if network.shrinks and left < len(active):
            rows = unfinished.nonzero()[:, 0]
            network.select(rows)
            active, unfinished = active[rows], unfinished[rows]
        own = Noise(noise.keys[active], noise.strata[active])
        call = Call(number, tokens[active], masked[active], generated[active], own, own.derive(number))
        tokens[active], masked[active] = _reveal(network, call, sampler, filters, temperature)
        calls[active] += unfinished
        if callback is not None:
            callback(tokens, number + 1)
    if bool((tokens == mask_id).any()):  # what is drawn where the logits are not finite
        raise NumericalError
    return Unmasked(tokens, calls)


def _reveal(
    network: Network, call: Call, sampler: Sampler, filters: Filters, temperature: float
) -> tuple[Tensor, Tensor]:
    """One network call: the tokens after it, and which of them are masked."""
    embeddings = network.embed(call.tokens, sampler.shadows)
    decided = sampler.statistic is None and not sampler.uses_critic  # without having seen what the network says
    if decided:
        after = sampler.masked_after(call)
        call = _draw(network, embeddings, call, call.masked & ~after, sampler, filters, temperature)
    else:
        call = _draw(network, embeddings, call, sampler.asked_of(call) | call.masked, sampler, filters, temperature)
        if sampler.uses_critic:
            call = replace(call, judgement=network.judge(call.tokens).double())
        after = sampler.masked_after(call)
    return call.tokens.masked_fill(after, filters.mask_id), after


def _draw(
    network: Network,
    embeddings: Tensor,
    call: Call,
    asked: Tensor,
    sampler: Sampler,
    filters: Filters,
    temperature: float,
) -> Call:
    """Put drawn tokens in the place of the masked ones among `asked`, bool `[batch, n]`, with their statistics."""
    n = call.tokens.shape[1]
    if sampler.shadows:
        embeddings = torch.where(call.masked[..., None], embeddings[:, :n], embeddings[:, n:])
    places = asked.flatten().nonzero()[:, 0]
    if not len(places):
        return call
    tiled = torch.cat((places, places[:1].expand(-len(places) % _TILE)))
    kept = call.tokens.masked_fill(call.masked, -1)
    heat = sampler.temperature(call, temperature)
    per_place = [call.noise.uniform(n), kept]
    if isinstance(heat, Tensor):
        per_place.append(heat[:, None].expand_as(kept))

    def reduce(logits: Tensor, uniform: Tensor, kept: Tensor, *rows_heat: Tensor) -> Tensor:
        parts = zip(*(each.split(_rows(_CACHED, network)) for each in (logits, uniform, kept, *rows_heat)))
        return torch.cat([answer(x, filters, h[0] if h else heat, u, k, sampler.statistic) for x, u, k, *h in parts])

    per_row = [values.flatten()[tiled] for values in per_place]
    rows = _rows(_CHUNK_ON_CPU if tiled.device.type == "cpu" else _CHUNK, network)
    parts = zip(*(each.split(rows) for each in (embeddings.flatten(0, 1)[tiled], *per_row)))
    answers = torch.cat([network.read(part, reduce, *rest) for part, *rest in parts])[: len(places)]
    tokens, statistics = call.tokens.flatten().clone(), torch.zeros_like(call.tokens.flatten(), dtype=torch.float64)
    tokens[places], statistics[places] = answers[:, 0].long(), answers[:, 1]
    return replace(call, tokens=tokens.view_as(kept), statistics=statistics.view_as(kept))


def _rows(logits: int, network: Network) -> int:
    """How many rows of logits there are in so many, a multiple of a tile."""
    return max(_TILE, logits // network.num_tokens // _TILE * _TILE)
