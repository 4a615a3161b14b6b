"""A sequence shared by several ranks: each holds a part of the tokens and, within attention, a part of the heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class SequenceParallelContext:
    """This rank's part of every sequence, and the way to its peers (DeepSpeed-Ulysses, arXiv:2309.14509).

    Attributes:
        rank: number of this rank among the peers; it holds the rank-th of `size` equal runs of tokens.
        size: peers that share a sequence.
        exchange: takes a tensor `[size, ...]`, gives row i to peer i, and returns what the peers have given,
            `[size, ...]`; differentiable.
    """

    rank: int
    size: int
    exchange: Callable[[Tensor], Tensor]

    def shard(self, values: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of values of whole sequences, whose dimension `dim` counts the tokens.

        Raises:
            ValueError: the tokens do not divide.
        """
        if self.size == 1:
            return values
        if values.shape[dim] % self.size:
            raise ValueError(f"{values.shape[dim]} tokens do not divide into the parts of {self.size} ranks")
        return values.chunk(self.size, dim)[self.rank]

    def global_positions(self, local_positions: Tensor, n: int) -> Tensor:
        """Positions in a flattened batch `[batch, n]` of those in this rank's flattened part of it, int64 `[...]`."""
        if self.size == 1:
            return local_positions
        tokens = n // self.size
        return local_positions // tokens * n + self.rank * tokens + local_positions % tokens

    def to_heads(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From all heads of a part of the tokens to a part of the heads of all tokens, in one exchange.

        Takes and returns `[batch, heads, tokens, dim_head]`. Heads of keys and values are repeated where there are
        too few to give every rank as many.
        """
        if self.size == 1:
            return queries, keys, values
        repeats = lcm(keys.shape[1], self.size) // keys.shape[1]
        whole = (queries, keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1))
        by_peer = [rearrange(each, "b (p h) n d -> p b h n d", p=self.size) for each in whole]
        received = rearrange(self.exchange(torch.cat(by_peer, dim=2)), "p b h n d -> b h (p n) d")
        queries, keys, values = received.split([each.shape[2] for each in by_peer], dim=1)
        return queries, keys, values

    def to_tokens(self, values: Tensor) -> Tensor:
        """Back again, from `[batch, heads / size, tokens, channels]` to `[batch, heads, tokens / size, channels]`."""
        if self.size == 1:
            return values
        by_peer = rearrange(values, "b h (p n) d -> p b h n d", p=self.size)
        return rearrange(self.exchange(by_peer), "p b h n d -> b (p h) n d")


WHOLE = SequenceParallelContext(0, 1, lambda values: values)
"""The context of a rank that holds whole sequences."""
