"""The attention mask: one rule of who attends to whom.

It becomes a mask for the scaled-dot-product kernels, or a plan of blocks for FlexAttention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]
"""Whether the query with one index may attend to the key with another: int64 that broadcast, to bool."""


@dataclass(frozen=True)
class Visibility:
    """What the queries of a forward pass may attend to.

    Attributes:
        queries: tokens in the pass.
        past: cached tokens before them; int64 `[batch]` where rows differ, which needs a `capacity`.
        causal: a token sees itself and those before it.
        window: a token sees those less than this many tokens away (Mistral, arXiv:2310.06825); None for all.
        present: bool `[batch, keys]`, false for tokens nobody attends to; None for all.
        documents: int64 `[batch, keys]`; a token sees only its own document. None for one document.
        rule: an additional rule on the indices of queries and keys.
        capacity: keys in the buffers, where rows have pasts of their own: those past the end of a row are hidden.
    """

    queries: int
    past: int | Tensor
    causal: bool
    window: int | None = None
    present: Tensor | None = None
    documents: Tensor | None = None
    rule: Rule | None = None
    capacity: int | None = None

    @property
    def keys(self) -> int:
        """Tokens that may be attended, the cached ones included."""
        return cast(int, self.past) + self.queries if self.capacity is None else self.capacity

    @property
    def trivial(self) -> bool:
        """Whether `causal` alone says everything."""
        restrictions = (self.present, self.documents, self.rule, self.window, self.capacity)
        return all(one is None for one in restrictions) and not (self.causal and self.past and self.queries > 1)

    @property
    def is_causal(self) -> bool:
        """Whether the kernel's own causal mask does it."""
        return self.trivial and self.causal and not self.past

    def allows(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether queries of batch rows may attend to keys, all given by index; int64 that broadcast, to bool.

        A token always sees itself: padding that saw nothing at all would be NaN.
        """
        allowed = query >= key if self.causal else (query >= 0) & (key >= 0)
        if self.window is not None:
            allowed = allowed & ((query - key).abs() < self.window)
        if self.documents is not None:
            allowed = allowed & (self.documents[row, query] == self.documents[row, key])
        if self.rule is not None:
            allowed = allowed & self.rule(query, key)
        if self.present is not None:
            allowed = allowed & self.present[row, key]
        return allowed | (query == key)

    def dense(self, device: torch.device) -> Tensor | None:
        """Bool, broadcastable to `[batch, heads, queries, keys]`; None if nothing but causality restricts."""
        if self.trivial:
            return None
        others = (self.window, self.documents, self.rule, self.capacity)
        if self.present is not None and not self.causal and all(one is None for one in others):
            return self.present[:, None, None]  # the common case of padding needs no matrix
        by_row = next((each for each in (self.past, self.present, self.documents) if isinstance(each, Tensor)), None)
        rows = torch.arange(1 if by_row is None else len(by_row), device=device)[:, None, None]
        past = self.past[:, None, None] if isinstance(self.past, Tensor) else self.past
        query = past + torch.arange(self.queries, device=device)[:, None]
        key = torch.arange(self.keys, device=device)
        allowed = self.allows(rows, query, key)
        if self.capacity is not None and not self.causal:
            allowed = allowed & (key < past + self.queries)
        return allowed.view(-1, 1, self.queries, self.keys)

    def block_mask(self, batch: int, device: torch.device) -> Any:
        """The same as a `BlockMask` for FlexAttention, which skips what nobody sees; None where `dense` has none."""
        if self.trivial:
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        by_row = self.present is not None or self.documents is not None
        return create_block_mask(
            lambda row, head, query, key: self.allows(row, query + self.past, key),
            batch if by_row else None,
            None,
            self.queries,
            self.keys,
            device=device,
        )
