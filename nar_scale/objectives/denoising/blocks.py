"""Unmasking block after block, with keys and values of finished blocks kept (BD3-LM, arXiv:2503.09573)."""

from __future__ import annotations

import torch
from torch import Tensor

from nar_scale.decoding import Filters, Sampler, StepCallback, Unmasked, unmask
from nar_scale.masking import Noise
from nar_scale.objectives.denoising.guided_network import GuidedNetwork


def first_end(generated: Tensor, tokens: Tensor, end_token: int) -> Tensor:
    """Where sequences end: at the first end token that is generated and has nothing given behind it; int64 `[batch]`.

    Args:
        generated: bool `[batch, n]`, false for tokens that are given.
        tokens: int64 `[batch, n]`.
        end_token: ends a sequence.

    Returns:
        its position, n where there is none.
    """
    n = tokens.shape[1]
    places = torch.arange(n, device=tokens.device)
    behind = places.masked_fill(generated, -1).amax(dim=1, keepdim=True)
    return places.masked_fill(~generated | (tokens != end_token) | (places <= behind), n).amin(dim=1)


def unmask_blocks(
    network: GuidedNetwork,
    tokens: Tensor,
    block_size: int,
    sampler: Sampler,
    filters: Filters,
    noise: Noise,
    *,
    temperature: float,
    end_token: int | None,
    callback: StepCallback | None,
) -> Unmasked:
    """Fill in every mask token, block after block; a network call computes one block.

    What is given in front of a sequence's first mask takes one call, whatever its length, and so do the keys and values
    of each further block that others look back to. A sequence leaves the batch after its last mask or its end token.

    Args:
        network: with an empty cache.
        tokens: int64 `[batch, n]`; tokens other than the mask token are given and stay as they are.
        block_size: tokens in a block.
        sampler: decides which tokens of a block are revealed.
        filters: which tokens are eligible, and the mask token.
        noise: the source of all randomness.
        temperature: divides the logits.
        end_token: where it is generated a sequence ends, if nothing is given behind it, and goes on in end tokens.
        callback: watches.
    """
    return _Blocks(network, tokens, block_size, end_token).run(sampler, filters, noise, temperature, callback)


class _Blocks:
    """The state of `unmask_blocks`: whole sequences, and the network for those that are not finished."""

    def __init__(self, network: GuidedNetwork, tokens: Tensor, block_size: int, end_token: int | None):
        self.network, self.size, self.end_token = network, block_size, end_token
        self.tokens, self.calls, self.made = tokens.clone(), torch.zeros_like(tokens[:, 0]), 0
        self.generated = tokens == network.denoiser.mask_id
        places, n = torch.arange(tokens.shape[1], device=tokens.device), tokens.shape[1]
        self.first = places.masked_fill(~self.generated, n).amin(dim=1) // block_size
        self.last = places.masked_fill(~self.generated, -1).amax(dim=1) // block_size
        self.rows = torch.arange(len(tokens), device=tokens.device)

    def run(
        self, sampler: Sampler, filters: Filters, noise: Noise, temperature: float, callback: StepCallback | None
    ) -> Unmasked:
        """Unmask all blocks."""
        self._leave(self.last >= 0)
        if len(self.rows):
            for start in self.first[self.rows].unique().tolist():
                self._remember((self.first[self.rows] == start).nonzero()[:, 0], 0, start * self.size)
            for block in range(int(self.first.min()), int(self.last.max()) + 1):
                self._unmask(block, sampler, filters, noise, temperature, callback)
        return Unmasked(self.tokens, self.calls)

    def _unmask(
        self,
        block: int,
        sampler: Sampler,
        filters: Filters,
        noise: Noise,
        temperature: float,
        callback: StepCallback | None,
    ) -> None:
        start, end = block * self.size, (block + 1) * self.size
        begun = self._begun(block)
        if not len(begun):
            return
        ids = self.rows[begun]
        own = Noise(noise.keys[ids], noise.strata[ids]).derive(block)
        watch = self._watched(callback, ids, slice(start, end))
        result = unmask(
            self._network_at(begun, start),
            self.tokens[ids, start:end],
            sampler,
            filters,
            own,
            temperature=temperature,
            callback=watch,
        )
        self.tokens[ids, start:end] = result.tokens
        self.calls[ids] += result.network_calls
        self.made += int(result.network_calls.max())
        if self.end_token is not None:
            self._end(ids, self.end_token)
        self._leave(self.last[self.rows] > block)
        self._remember(self._begun(block), start, end)

    def _begun(self, block: int) -> Tensor:
        """Which of the unfinished sequences have their first mask in this block or before."""
        return (self.first[self.rows] <= block).nonzero()[:, 0]

    def _network_at(self, which: Tensor, start: int) -> GuidedNetwork:
        part = self.network.subset(which)
        if part.cache is not None:
            part.cache.truncate(start)
        return part

    def _remember(self, which: Tensor, start: int, end: int) -> None:
        """Keep keys and values of some of the unfinished sequences."""
        if not len(which) or start == end:
            return
        part = self._network_at(which, start)
        part.remember(self.tokens[self.rows[which], start:end], self.size)
        self.network.adopt(which, part, start)
        self.calls[self.rows[which]] += 1
        self.made += 1

    def _leave(self, stay: Tensor) -> None:
        """Drop the sequences that are finished."""
        if not bool(stay.all()):
            rows = stay.nonzero()[:, 0]
            self.network.select(rows)
            self.rows = self.rows[rows]

    def _end(self, ids: Tensor, end_token: int) -> None:
        """Fill up the sequences that have ended."""
        ends = first_end(self.generated[ids], self.tokens[ids], end_token)[:, None]
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        self.tokens[ids] = self.tokens[ids].masked_fill(places > ends, end_token)
        self.last[ids] = self.last[ids].masked_fill(ends[:, 0] < len(places), -1)

    def _watched(self, callback: StepCallback | None, ids: Tensor, block: slice) -> StepCallback | None:
        if callback is None:
            return None

        def watch(tokens: Tensor, number: int) -> None:
            shown = self.tokens.clone()
            shown[ids, block] = tokens
            callback(shown, self.made + number)

        return watch
