"""Multi-head attention through torch's kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_scale.model.kv_cache import KeyValueCache
from nar_scale.model.layers import Linear, make_norm, rotate
from nar_scale.model.sequence_parallel import WHOLE, SequenceParallelContext


class Attention(nn.Module):
    """Attention with grouped key/value heads and optional rotary positions and query/key norm.

    Args:
        dim: width of the input and output.
        heads: query heads.
        kv_heads: key/value heads, each shared by `heads // kv_heads` query heads (arXiv:2305.13245).
        dim_head: channels of a head.
        qk_norm: RMS-normalise queries and keys in each head (arXiv:2302.05442).
        dropout: probability of dropping an attention weight in training.
        output_scale: scale of the output projection's initial values.
        dim_context: width of what keys and values are made of; `dim` if not given.
        norm_eps: of the query and key norms; 1e-6 if not given.
        biases: of queries and of keys, their values at first, of all heads one after the other; none if not given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        dim_head: int,
        qk_norm: bool,
        dropout: float,
        output_scale: float,
        dim_context: int | None = None,
        norm_eps: float | None = None,
        biases: tuple[list[float], list[float]] | None = None,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.dim_head, self.dropout = heads, kv_heads, dim_head, dropout
        query_bias, key_bias = biases or (False, False)
        self.to_queries = Linear(dim, heads * dim_head, bias=query_bias)
        self.to_keys = Linear(dim_context or dim, kv_heads * dim_head, bias=key_bias)
        self.to_values = Linear(dim_context or dim, kv_heads * dim_head)
        self.to_out = Linear(heads * dim_head, dim, output_scale)
        self.query_norm = make_norm("rmsnorm", dim_head, norm_eps) if qk_norm else nn.Identity()
        self.key_norm = make_norm("rmsnorm", dim_head, norm_eps) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | Any = None,
        is_causal: bool = False,
        context: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        with_z_loss: bool = False,
        sequence_parallel: SequenceParallelContext = WHOLE,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `[batch, n, dim]` to itself or to a context.

        Args:
            angles: cosines and sines of the rotary positions.
            mask: bool, broadcastable to `[batch, heads, n, keys]`, true where attention is allowed; or a `BlockMask`,
                with which FlexAttention is used. Of whole sequences, also where they are shared.
            is_causal: a token sees itself and those before it; without `mask` and `cache` only.
            context: `[batch, m, dim_context]`, attended instead of `x`.
            cache: earlier keys and values, extended in place.
            with_z_loss: also return the squared log-partition of the attention logits; needs a tensor as `mask`.
            sequence_parallel: this rank's part of the sequences, which `x` is of; self-attention then still sees all
                of them.

        Returns:
            `[batch, n, dim]` and, if asked for, the squared logsumexp summed over heads, `[batch, n]`.
        """
        source = x if context is None else context
        queries = self.query_norm(self._by_head(self.to_queries(x), self.heads))
        keys = self.key_norm(self._by_head(self.to_keys(source), self.kv_heads))
        values = self._by_head(self.to_values(source), self.kv_heads)
        if angles is not None:
            queries, keys = rotate(queries, *angles), rotate(keys, *angles)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        if context is not None:
            sequence_parallel = WHOLE  # every rank has all of the context
        queries, keys, values = sequence_parallel.to_heads(queries, keys, values)
        out = sequence_parallel.to_tokens(self._attend(queries, keys, values, mask, is_causal))
        z_loss = None
        if with_z_loss:
            by_head = self._squared_log_partition(queries, keys, mask, is_causal)
            z_loss = sequence_parallel.to_tokens(by_head[..., None]).sum(dim=(1, 3))
        return self.to_out(out.transpose(1, 2).flatten(2)), z_loss

    def _by_head(self, x: Tensor, heads: int) -> Tensor:
        """`[batch, n, heads * dim_head]` as `[batch, heads, n, dim_head]`."""
        return x.unflatten(2, (heads, self.dim_head)).transpose(1, 2)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | Any, is_causal: bool) -> Tensor:
        grouped = keys.shape[1] != queries.shape[1]
        if mask is None or isinstance(mask, Tensor):
            dropout = self.dropout if self.training else 0.0
            return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal, enable_gqa=grouped)
        return flex_kernel(queries.device)(queries, keys, values, block_mask=mask, enable_gqa=grouped)

    def _squared_log_partition(self, queries: Tensor, keys: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        logits = torch.einsum("bhid,bhjd->bhij", queries, keys).float() * self.dim_head**-0.5
        if is_causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return logits.logsumexp(dim=-1).square()


@lru_cache
def flex_kernel(device: torch.device) -> Callable[..., Tensor]:
    """FlexAttention; compiled on GPUs, since it materialises everything otherwise."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device.type == "cuda" else cast(Any, flex_attention)
