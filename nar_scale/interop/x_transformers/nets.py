"""From x-transformers' options to a net, and from a net to the options that describe it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from nar_scale.errors import ConfigError
from nar_scale.interop.x_transformers.options import LayerOptions, WrapperOptions
from nar_scale.model import Decoder, Encoder, TransformerWrapper
from nar_scale.model.stack import AttentionLayers

THETA = 10_000.0
LAYER_NORM_EPS = 1e-5
RMS_NORM_EPS = 1e-24
"""x-transformers divides by the norm itself, but by 1e-12 at least."""


def build_net(
    kind: type[Encoder] | type[Decoder], wrapper: WrapperOptions, layers: LayerOptions, biases: bool
) -> TransformerWrapper:
    """The net that x-transformers' options describe, freshly initialised.

    Args:
        biases: give the feed-forward projections biases.

    Raises:
        ConfigError: options with no counterpart, or that contradict each other.
    """
    stack = kind(**layer_arguments(layers, causal=kind.causal, biases=biases))
    as_their_norms(stack)
    return TransformerWrapper(attn_layers=stack, **wrapper_arguments(wrapper, stack))


def layer_arguments(layers: LayerOptions, *, causal: bool, biases: bool) -> dict[str, Any]:
    """The arguments of our `Encoder` or `Decoder` that x-transformers' options stand for.

    Args:
        causal: whether it is a `Decoder`.
        biases: give the feed-forward projections biases.

    Raises:
        ConfigError: options with no counterpart, or that contradict each other; all of them are named.
    """
    _refuse(_layer_refusals(layers, causal))
    past = layers.attn_max_attend_past
    return {
        "dim": layers.dim,
        "depth": layers.depth,
        "heads": layers.heads,
        "dim_head": layers.attn_dim_head,
        "kv_heads": layers.kv_heads,
        "feedforward": ("swiglu" if layers.ff_swish else "geglu") if layers.ff_glu else "gelu",
        "feedforward_dim": int(layers.dim * layers.ff_mult),
        "feedforward_bias": biases,
        "norm": "rmsnorm" if layers.use_rmsnorm else "layernorm",
        "rotary": layers.rotary_pos_emb,
        "rotary_theta": THETA,
        "rotary_dim": layers.rotary_dim or None,
        "rotary_interpolation_factor": layers.rotary_interpolation_factor,
        "rotary_base_rescale_factor": layers.rotary_base_rescale_factor,
        "qk_norm": layers.attn_qk_norm or layers.attn_qk_rmsnorm,
        "window": None if past is None else past + 1,
        "cross_attend": layers.cross_attend,
        "dim_context": layers.cross_attn_dim_context,
        "dropout": layers.attn_dropout,
    }


def wrapper_arguments(wrapper: WrapperOptions, stack: AttentionLayers) -> dict[str, Any]:
    """The arguments of our `TransformerWrapper`, beside `attn_layers`, that x-transformers' options stand for.

    Raises:
        ConfigError: no positions at all.
    """
    no_positions = not wrapper.use_abs_pos_emb and stack.rotary is None
    _refuse([(no_positions, "use_abs_pos_emb False needs rotary_pos_emb: there are no nets without positions here")])
    scale = wrapper.tie_embedding_scale
    return {
        "num_tokens": wrapper.num_tokens,
        "max_seq_len": wrapper.max_seq_len,
        "tie_embedding": wrapper.tie_embedding,
        "tie_embedding_scale": stack.dim**-0.5 if scale is None else scale,
        "add_continuous_pred_head": wrapper.add_continuous_pred_head,
        "attn_z_loss_weight": wrapper.attn_z_loss_weight,
        "logits_dim": wrapper.logits_dim,
    }


def as_their_norms(stack: AttentionLayers) -> None:
    """Give all RMS norms x-transformers' epsilon, those of queries and keys too, whatever norms the stack has."""
    for module in stack.modules():
        if isinstance(module, nn.RMSNorm):
            module.eps = RMS_NORM_EPS


def query_key_gamma(layers: LayerOptions) -> float:
    """What makes RMS norms of queries and keys, before a scale of dim_head**-0.5, `attn_qk_norm` and its scale."""
    return float((layers.attn_qk_norm_scale * layers.attn_dim_head**-0.5) ** 0.5)


def describe_net(net: TransformerWrapper, ignore_norm_eps: bool = False) -> tuple[WrapperOptions, LayerOptions]:
    """The options of x-transformers with which it computes what a net computes.

    Args:
        ignore_norm_eps: accept norms with another epsilon than x-transformers'.

    Raises:
        ConfigError: the net has what x-transformers cannot represent.
    """
    _refuse(_export_refusals(net, ignore_norm_eps))
    stack = net.attn_layers
    block: Any = stack.blocks[0]
    feedforward, cross = block.feedforward, block.cross_attention
    hidden, dropout = feedforward.to_out.in_features, block.dropout.p
    exact = int(stack.dim * (hidden / stack.dim)) == hidden
    layers = {
        "dim": stack.dim,
        "depth": stack.depth,
        "heads": stack.heads,
        "attn_dim_head": stack.dim_head,
        "attn_kv_heads": None if block.attention.kv_heads == stack.heads else block.attention.kv_heads,
        "attn_project_out": None if stack.heads > 1 else True,
        "attn_qk_rmsnorm": isinstance(block.attention.query_norm, nn.RMSNorm),
        "attn_max_attend_past": None if stack.window is None else stack.window - 1,
        **dict.fromkeys(("attn_dropout", "attn_sublayer_dropout", "ff_dropout", "ff_sublayer_dropout"), dropout),
        "cross_attend": stack.cross_attend,
        "cross_attn_dim_context": None if cross is None else cross.to_keys.in_features,
        "ff_mult": hidden / stack.dim if exact else (hidden + 0.5) / stack.dim,
        "ff_glu": feedforward.gated,
        "ff_swish": feedforward.activation is F.silu,
        "ff_no_bias": feedforward.to_out.bias is None,
        "use_rmsnorm": isinstance(stack.final_norm, nn.RMSNorm),
        "norm_add_unit_offset": False,  # adding 1 and taking it away again would round
    }
    if stack.rotary is not None:
        rotary = stack.rotary
        layers |= {
            "rotary_pos_emb": True,
            "rotary_emb_dim": rotary.dim,
            "rotary_interpolation_factor": rotary.interpolation_factor,
            "rotary_base_rescale_factor": (rotary.theta / THETA) ** ((rotary.dim - 2) / rotary.dim),
        }
    outputs = net.to_logits.out_features
    wrapper = WrapperOptions(
        num_tokens=net.num_tokens,
        max_seq_len=net.max_seq_len,
        tie_embedding=net.tie_embedding,
        tie_embedding_scale=net.to_logits.input_scale if net.tie_embedding else None,
        logits_dim=None if outputs == net.num_tokens else outputs,
        add_continuous_pred_head=net.add_continuous_pred_head,
        attn_z_loss_weight=net.attn_z_loss_weight,
    )
    return wrapper, LayerOptions(**layers)


def _refuse(checks: list[tuple[bool, str]]) -> None:
    reasons = [reason for refused, reason in checks if refused]
    if reasons:
        raise ConfigError("; ".join(reasons))


def _layer_refusals(layers: LayerOptions, causal: bool) -> list[tuple[bool, str]]:
    dropouts = {layers.attn_dropout, layers.ff_dropout}
    block_dropouts = {layers.attn_sublayer_dropout, layers.ff_sublayer_dropout}
    past = layers.attn_max_attend_past is not None
    wide = layers.heads * layers.attn_dim_head != layers.dim
    return [
        (layers.ff_swish and not layers.ff_glu, "ff_swish needs ff_glu: there is no ungated SiLU feed-forward here"),
        (
            layers.attn_qk_norm and layers.attn_qk_rmsnorm,
            "attn_qk_norm and attn_qk_rmsnorm together have no counterpart here",
        ),
        (
            layers.attn_one_kv_head and layers.attn_kv_heads is not None,
            "attn_one_kv_head and attn_kv_heads contradict each other",
        ),
        (len(dropouts) > 1, "attn_dropout and ff_dropout must be equal"),
        (
            block_dropouts not in ({0.0}, dropouts),
            "attn_sublayer_dropout and ff_sublayer_dropout must be 0 or as attn_dropout",
        ),
        (past and not causal, "attn_max_attend_past has no counterpart in an Encoder: a window hides both sides"),
        (past and layers.cross_attend, "attn_max_attend_past has no counterpart with cross_attend"),
        (
            not layers.project_out and wide,
            f"without attn_project_out (as with heads 1) attn_dim_head times heads must be dim {layers.dim}",
        ),
        (
            layers.cross_attn_dim_context is not None and not layers.cross_attend,
            "cross_attn_dim_context needs cross_attend",
        ),
        (layers.rotary_pos_emb and layers.rotary_dim <= 2, "rotary_emb_dim must be above 2"),
    ]


def _export_refusals(net: TransformerWrapper, ignore_norm_eps: bool) -> list[tuple[bool, str]]:
    stack = net.attn_layers
    windowed = stack.window is not None
    block: Any = stack.blocks[0]
    factor = stack.rotary.interpolation_factor if stack.rotary is not None else 1.0
    expected = {nn.RMSNorm: RMS_NORM_EPS, nn.LayerNorm: LAYER_NORM_EPS}
    norms = [module for module in net.modules() if isinstance(module, (nn.RMSNorm, nn.LayerNorm))]
    differences = [
        f"{norm.eps}: x-transformers has {expected[type(norm)]}" for norm in norms if norm.eps != expected[type(norm)]
    ]
    return [
        (windowed and not stack.causal, "window in an Encoder: x-transformers limits the past alone"),
        (windowed and stack.cross_attend, "window with cross_attend: x-transformers limits the context too"),
        (stack.rotary is not None and stack.rotary.dim == 2, "rotary_dim 2: x-transformers divides by rotary_dim - 2"),
        (block.attention.to_queries.bias is not None, "qk_bias: x-transformers has none"),
        (factor < 1, f"rotary_interpolation_factor {factor}: x-transformers takes 1 and above"),
        (
            bool(differences) and not ignore_norm_eps,
            f"norm_eps {', '.join(differences[:1])}, with which results differ slightly; allow that with "
            "ignore_norm_eps=True (--ignore-norm-eps)",
        ),
    ]
