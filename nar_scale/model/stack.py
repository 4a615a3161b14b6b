"""`Encoder` and `Decoder`: stacks of pre-norm transformer blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from nar_scale.errors import ConfigError
from nar_scale.model.attention import Attention
from nar_scale.model.attention_mask import Rule, Visibility
from nar_scale.model.distance_bias import near_biases
from nar_scale.model.kv_cache import KeyValueCache
from nar_scale.model.layers import FeedForward, FeedForwardName, NormName, Rotary, hidden_width, make_norm
from nar_scale.model.sequence_parallel import WHOLE, SequenceParallelContext

Checkpointing = Literal["none", "full", "selective"]
AttentionKernel = Literal["sdpa", "flex"]

_aten = torch.ops.aten
# what selective checkpointing keeps: results of matrix products and attention, which are dear to compute again
_KEPT = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
]


class Block(nn.Module):
    """x + attention(norm(x)), then the same with a context if there is one, then with the feed-forward layer."""

    def __init__(
        self,
        attention: Attention,
        cross_attention: Attention | None,
        feedforward: FeedForward,
        norm: Callable[[], nn.Module],
        dropout: float,
    ):
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.cross_attention_norm = norm() if cross_attention is not None else None
        self.cross_attention = cross_attention
        self.feedforward_norm = norm()
        self.feedforward = feedforward
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        unfinished: bool = False,
        **attention_arguments: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map `[batch, n, dim]` to the same shape, if `unfinished` but for `finish`; and pass on the z-loss."""
        attended, z_loss = self.attention(self.attention_norm(x), **attention_arguments)
        x = x + self.dropout(attended)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            attended, _ = self.cross_attention(self.cross_attention_norm(x), context=context, mask=context_mask)
            x = x + self.dropout(attended)
        return x if unfinished else self.finish(x), z_loss

    def finish(self, x: Tensor) -> Tensor:
        """What follows attention, and takes each token by itself: `[..., dim]` to the same shape."""
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class AttentionLayers(nn.Module):
    """A stack of blocks; use `Encoder` (sees both sides) or `Decoder` (sees the past).

    All projections start from N(0, 1 / (3 in_features)), those into the residual stream with a standard deviation
    smaller by sqrt(2 depth) (GPT-2), norms from 1.

    Args:
        dim: width of the residual stream.
        depth: blocks.
        heads: query heads.
        dim_head: channels of a head; `dim // heads` if not given.
        kv_heads: key/value heads; `heads` if not given.
        feedforward: `swiglu`, `geglu` or `gelu`.
        feedforward_mult: hidden width over `dim`; the gated forms use two thirds of it.
        feedforward_dim: the hidden width itself, instead.
        feedforward_bias: give the feed-forward projections biases.
        norm: `rmsnorm` or `layernorm`.
        norm_eps: added to the mean square; 1e-6 for RMSNorm and 1e-5 for LayerNorm if not given.
        rotary: rotary positions; without them `TransformerWrapper` adds learned ones.
        rotary_theta: base of the rotary wavelengths.
        rotary_dim: channels of a head that are rotated; all if not given.
        rotary_interpolation_factor: divides positions, to run on longer sequences (arXiv:2306.15595).
        rotary_base_rescale_factor: NTK-aware scaling, for the same end.
        qk_norm: normalise queries and keys.
        qk_bias: give queries and keys of self-attention biases, with which each head looks at near tokens at first.
        window: a token attends to those less than this many tokens away.
        cross_attend: attend to a context after each self-attention.
        dim_context: width of the context; `dim` if not given.
        dropout: of attention weights, hidden units and block outputs.
        attention_kernel: `sdpa`, or `flex`, which skips what a window, documents or padding hide, but has no attention
            dropout and no z-loss.
        activation_checkpointing: `full` computes each block again in the backward pass; `selective` keeps the results
            of matrix products and attention and repeats the rest.
        compile: run each block through `torch.compile` in training.

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
        feedforward_dim: int | None = None,
        feedforward_bias: bool = False,
        norm: NormName = "rmsnorm",
        norm_eps: float | None = None,
        rotary: bool = True,
        rotary_theta: float = 10_000.0,
        rotary_dim: int | None = None,
        rotary_interpolation_factor: float = 1.0,
        rotary_base_rescale_factor: float = 1.0,
        qk_norm: bool = False,
        qk_bias: bool = False,
        window: int | None = None,
        cross_attend: bool = False,
        dim_context: int | None = None,
        dropout: float = 0.0,
        attention_kernel: AttentionKernel = "sdpa",
        activation_checkpointing: Checkpointing = "none",
        compile: bool = False,
    ):
        super().__init__()
        if dim_head is None and dim % heads:
            raise ConfigError(f"dim {dim} is not divisible by heads {heads}; give dim_head")
        dim_head = dim_head or dim // heads
        kv_heads = kv_heads or heads
        rotary_dim = rotary_dim or dim_head
        if heads % kv_heads:
            raise ConfigError(f"heads {heads} is not divisible by kv_heads {kv_heads}")
        if rotary and (rotary_dim % 2 or rotary_dim > dim_head):
            wanted = "dim_head" if rotary_dim == dim_head else f"rotary_dim of at most dim_head {dim_head}"
            raise ConfigError(f"rotary positions need an even {wanted}, not {rotary_dim}")
        if rotary and rotary_base_rescale_factor != 1 and rotary_dim <= 2:
            raise ConfigError(f"rotary_base_rescale_factor needs more than {rotary_dim} rotated channels")
        if qk_bias and not rotary:
            raise ConfigError("qk_bias needs rotary positions")
        _check_choice("activation_checkpointing", activation_checkpointing, Checkpointing)
        _check_choice("norm", norm, NormName)
        _check_choice("feedforward", feedforward, FeedForwardName)
        _check_choice("attention_kernel", attention_kernel, AttentionKernel)
        if attention_kernel == "flex" and dropout:
            raise ConfigError("attention_kernel flex has no attention dropout; use sdpa or dropout 0")
        if window is not None and window < 1:
            raise ConfigError(f"window must be at least 1, not {window}")
        self.dim, self.depth, self.heads, self.dim_head = dim, depth, heads, dim_head
        self.window, self.cross_attend, self.attention_kernel = window, cross_attend, attention_kernel
        self.activation_checkpointing = activation_checkpointing
        scaling = (rotary_interpolation_factor, rotary_base_rescale_factor)
        self.rotary = Rotary(rotary_dim, rotary_theta, *scaling) if rotary else None

        output_scale = (2 * depth) ** -0.5
        attention = partial(
            Attention, dim, heads, kv_heads, dim_head, qk_norm, dropout, output_scale, norm_eps=norm_eps
        )
        biases = near_biases(self.rotary, dim_head, heads, kv_heads, self.causal) if qk_bias and self.rotary else None
        hidden = feedforward_dim or hidden_width(dim, feedforward_mult, feedforward)
        self.blocks = nn.ModuleList(
            Block(
                attention=attention(biases=biases),
                cross_attention=attention(dim_context=dim_context) if cross_attend else None,
                feedforward=FeedForward(dim, hidden, feedforward, feedforward_bias, dropout, output_scale),
                norm=partial(make_norm, norm, dim, norm_eps),
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.final_norm = make_norm(norm, dim, norm_eps)
        self.compile_blocks = compile
        self._compiled: dict[int, Callable[..., tuple[Tensor, Tensor | None]]] = {}

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        with_z_loss: bool = False,
        *,
        documents: Tensor | None = None,
        rule: Rule | None = None,
        causal: bool | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        sequence_parallel: SequenceParallelContext = WHOLE,
        unfinished: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the stack.

        Args:
            x: `[batch, n, dim]`.
            positions: int64 `[n]` or `[batch, n]`.
            mask: bool `[batch, keys]`, true for the tokens that may be attended, the cached ones included.
            cache: earlier keys and values, extended in place.
            with_z_loss: also return the attention z-loss.
            documents: int64 `[batch, keys]`; a token attends only to its own document.
            rule: which queries may attend to which keys, by their indices, in addition.
            causal: whether a token sees only itself and the past; None for what the stack is made for.
            context: `[batch, m, dim_context]`, with `cross_attend`.
            context_mask: bool `[batch, m]`, true where the context may be attended.
            sequence_parallel: this rank's part of the sequences, which `x` and `positions` are of; `mask`, `documents`
                and the indices of `rule` are of the whole.
            unfinished: leave `finish` to the caller, who may want few of the tokens.

        Returns:
            embeddings `[batch, n, dim]`, and the z-loss per token `[batch, n]`: squared log-partition of the
            attention logits (ST-MoE, arXiv:2202.08906, eq. 5), summed over blocks and heads.

        Raises:
            ValueError: a context without `cross_attend` or the reverse; a z-loss with the `flex` kernel.
        """
        if self.cross_attend != (context is not None):
            raise ValueError("a context is needed" if self.cross_attend else "a context needs cross_attend=True")
        flex = self.attention_kernel == "flex" and cache is None
        if flex and with_z_loss:
            raise ValueError("the attention z-loss needs attention_kernel sdpa")
        queries = x.shape[1] * sequence_parallel.size
        causal = self.causal if causal is None else causal
        past: int | Tensor = 0
        keys = None
        if cache is not None:
            cache.start(len(x), x.device)
            past, keys = (cache.longest, None) if cache.aligned else (cache.lengths, cache.keys_after(queries))
        visibility = Visibility(queries, past, causal, self.window, mask, documents, rule, keys)
        angles = self.rotary.angles(positions) if self.rotary else None
        if angles is not None and positions.ndim == 2:
            angles = (angles[0][:, None], angles[1][:, None])
        arguments = {
            "angles": angles,
            "mask": visibility.block_mask(len(x), x.device) if flex else visibility.dense(x.device),
            "is_causal": visibility.is_causal,
            "cache": cache,
            "with_z_loss": with_z_loss,
            "sequence_parallel": sequence_parallel,
        }
        if context is not None:
            arguments["context"] = context.to(x.dtype)
            arguments["context_mask"] = None if context_mask is None else context_mask[:, None, None]
        z_losses = []
        for layer in range(self.depth):
            # a compiled block has a graph for each number that it is given, so it is given one only with a cache
            own = {} if cache is None else {"layer": layer}
            if unfinished and layer == self.depth - 1:
                own["unfinished"] = True
            x, z_loss = self._run(layer)(x, **own, **arguments)
            z_losses.append(z_loss)
        if cache is not None:
            cache.advance(x.shape[1])
        x = x if unfinished else self.final_norm(x)
        return x, sum(z_losses) if with_z_loss else None  # type: ignore[arg-type, return-value]

    def finish(self, x: Tensor) -> Tensor:
        """The last feed-forward layer and the final norm, which take each token by itself.

        Args:
            x: what `forward` leaves `unfinished`, or some of its tokens; `[..., dim]`.

        Returns:
            embeddings of the same shape.
        """
        return self.final_norm(cast(Block, self.blocks[-1]).finish(x))

    def _run(self, layer: int) -> Callable[..., tuple[Tensor, Tensor | None]]:
        block = self.blocks[layer]
        if not (self.training and torch.is_grad_enabled()):
            return block
        if not self.compile_blocks:
            return self._checkpointed(block)
        if layer not in self._compiled:
            # a second shape gets a graph of its own: one for any shape would be slower for all
            self._compiled[layer] = torch.compile(self._checkpointed(block), dynamic=False)
        return self._compiled[layer]

    def _checkpointed(self, block: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """What `torch.compile` is to see: around a compiled block, `selective` would keep attention alone."""
        if self.activation_checkpointing == "none":
            return block
        settings: dict[str, Any] = {"use_reentrant": False}
        if self.activation_checkpointing == "selective":
            settings["context_fn"] = partial(create_selective_checkpoint_contexts, _KEPT)
        return partial(checkpoint, block, **settings)


def _check_choice(name: str, value: str, choices: Any) -> None:
    *others, last = get_args(choices)
    if value not in (*others, last):
        raise ConfigError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")


class Encoder(AttentionLayers):
    """Blocks in which every token sees every other: for non-autoregressive models."""

    causal = False


class Decoder(AttentionLayers):
    """Blocks in which a token sees itself and the past: for autoregressive models."""

    causal = True
