"""`Encoder` and `Decoder`: stacks of pre-norm transformer blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nar_scale.errors import ConfigError
from nar_scale.model.attention import Attention, KeyValueCache
from nar_scale.model.layers import FeedForward, FeedForwardName, NormName, Rotary, make_norm


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, dim: int, norm: NormName, attention: Attention, feedforward: FeedForward, dropout: float):
        super().__init__()
        self.attention_norm = make_norm(norm, dim)
        self.attention = attention
        self.feedforward_norm = make_norm(norm, dim)
        self.feedforward = feedforward
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, **attention_arguments: Any) -> tuple[Tensor, Tensor | None]:
        """Map `[batch, n, dim]` to the same shape, and pass on the attention's z-loss."""
        attended, z_loss = self.attention(self.attention_norm(x), **attention_arguments)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feedforward(self.feedforward_norm(x))), z_loss


class AttentionLayers(nn.Module):
    """A stack of blocks; use `Encoder` (sees both sides) or `Decoder` (sees the past).

    Args:
        dim: width of the residual stream.
        depth: blocks.
        heads: query heads.
        dim_head: channels of a head; `dim // heads` if not given.
        kv_heads: key/value heads; `heads` if not given.
        feedforward: `swiglu`, `geglu` or `gelu`.
        feedforward_mult: hidden width over `dim`.
        norm: `rmsnorm` or `layernorm`.
        rotary: rotary positions; without them `TransformerWrapper` adds learned ones.
        rotary_theta: base of the rotary wavelengths.
        qk_norm: normalise queries and keys.
        dropout: of attention weights, hidden units and block outputs.
        activation_checkpointing: recompute each block in the backward pass.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    causal: bool

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int = 8,
        *,
        dim_head: int | None = None,
        kv_heads: int | None = None,
        feedforward: FeedForwardName = "swiglu",
        feedforward_mult: float = 4.0,
        norm: NormName = "rmsnorm",
        rotary: bool = True,
        rotary_theta: float = 10_000.0,
        qk_norm: bool = False,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        if dim_head is None and dim % heads:
            raise ConfigError(f"dim {dim} is not divisible by heads {heads}; give dim_head")
        dim_head = dim_head or dim // heads
        kv_heads = kv_heads or heads
        if heads % kv_heads:
            raise ConfigError(f"heads {heads} is not divisible by kv_heads {kv_heads}")
        if rotary and dim_head % 2:
            raise ConfigError(f"rotary positions need an even dim_head, not {dim_head}")
        self.dim, self.depth, self.heads, self.dim_head = dim, depth, heads, dim_head
        self.activation_checkpointing = activation_checkpointing
        self.rotary = Rotary(dim_head, rotary_theta) if rotary else None
        output_scale = (2 * depth) ** -0.5
        self.blocks = nn.ModuleList(
            Block(
                dim,
                norm,
                Attention(dim, heads, kv_heads, dim_head, qk_norm, dropout, output_scale),
                FeedForward(dim, feedforward_mult, feedforward, dropout, output_scale),
                dropout,
            )
            for _ in range(depth)
        )
        self.final_norm = make_norm(norm, dim)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        with_z_loss: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the stack.

        Args:
            x: `[batch, n, dim]`.
            positions: int64 `[n]` or `[batch, n]`.
            mask: bool `[batch, keys]`, true for the tokens that may be attended, the cached ones included.
            cache: earlier keys and values (`Decoder` only), extended in place.
            with_z_loss: also return the attention z-loss.

        Returns:
            embeddings `[batch, n, dim]`, and the z-loss per token `[batch, n]`, summed over blocks and heads.
        """
        angles = self.rotary.angles(positions) if self.rotary else None
        if angles is not None and positions.ndim == 2:
            angles = (angles[0][:, None], angles[1][:, None])
        attention_mask, is_causal = self._attention_mask(x.shape[1], mask, cache, x.device)
        arguments = {
            "angles": angles,
            "mask": attention_mask,
            "is_causal": is_causal,
            "cache": cache,
            "with_z_loss": with_z_loss,
        }
        z_losses = []
        for layer, block in enumerate(self.blocks):
            x, z_loss = self._run(block)(x, layer=layer, **arguments)
            z_losses.append(z_loss)
        if cache is not None:
            cache.length += x.shape[1]
        return self.final_norm(x), sum(z_losses) if with_z_loss else None  # type: ignore[arg-type, return-value]

    def _run(self, block: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
        if not (self.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return block
        return lambda x, **arguments: checkpoint(block, x, use_reentrant=False, **arguments)

    def _attention_mask(
        self, queries: int, mask: Tensor | None, cache: KeyValueCache | None, device: torch.device
    ) -> tuple[Tensor | None, bool]:
        """An explicit mask, or None and whether the kernel shall mask the future by itself."""
        past = cache.length if cache is not None else 0
        if mask is None and not past:
            return None, self.causal
        allowed = None if mask is None else mask[:, None, None, :]
        if self.causal and queries > 1:
            causal = torch.ones(queries, past + queries, dtype=torch.bool, device=device).tril(past)
            itself = causal.triu(past)  # a padding token that saw nothing at all would be NaN
            allowed = causal if allowed is None else (causal & allowed) | itself
        return allowed, False


class Encoder(AttentionLayers):
    """Blocks in which every token sees every other: for non-autoregressive models."""

    causal = False


class Decoder(AttentionLayers):
    """Blocks in which a token sees itself and the past: for autoregressive models."""

    causal = True
