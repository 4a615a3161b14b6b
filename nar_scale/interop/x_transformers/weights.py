"""Which weight of x-transformers is which of ours, and how one is made of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, arange

from nar_scale.interop.x_transformers.nets import THETA, query_key_gamma
from nar_scale.interop.x_transformers.options import LayerOptions
from nar_scale.model import TransformerWrapper

GATE_BIAS = "ff.0.proj.bias"
"""Gated units have it there even with `ff_no_bias`."""


class Change(NamedTuple):
    """How a weight of theirs becomes ours, and back."""

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


def _never() -> Tensor:
    raise AssertionError("both sides have this weight")


class Entry(NamedTuple):
    """A weight of either side or of both.

    Attributes:
        theirs: its name there.
        ours: its name here.
        change: between the two.
        is_there: whether x-transformers has it, with the options given.
        stand_in: what it is, in their layout, to a side that does not have it.
    """

    theirs: str
    ours: str
    change: Change
    is_there: bool = True
    stand_in: Callable[[], Tensor] = _never

    def to_ours(self, value: Tensor) -> Tensor:
        """Our weight, made of theirs."""
        return self.change.to_ours(value)

    def to_theirs(self, value: Tensor) -> Tensor:
        """Their weight, made of ours."""
        return self.change.to_theirs(value)


def _same(value: Tensor) -> Tensor:
    return value


def _swap_halves(value: Tensor) -> Tensor:
    return value.roll(len(value) // 2, 0)


_SAME = Change(_same, _same)
_GATED = Change(_swap_halves, _swap_halves)
_OFFSET = Change(lambda gamma: gamma + 1, lambda gamma: gamma - 1)


def _scaled(factor: float) -> Change:
    return Change(lambda value: value * factor, lambda value: value / factor)


def _permuted(order: Tensor, dim: int = 0) -> Change:
    """Index i here is index `order[i]` there."""
    inverse = order.argsort()
    return Change(lambda value: value.index_select(dim, order), lambda value: value.index_select(dim, inverse))


def _of_all_heads(heads: int, channels: Tensor) -> Change:
    """A gamma `[heads, 1, dim_head]` less 1 there, and one `[dim_head]` for all heads here."""
    order = _permuted(channels)

    def to_ours(gamma: Tensor) -> Tensor:
        if not (gamma == gamma[:1]).all():
            raise ValueError("differs from head to head, and here all heads share one")
        return order.to_ours(gamma[0, 0]) + 1

    return Change(to_ours, lambda gamma: (order.to_theirs(gamma) - 1).expand(heads, 1, -1))


def list_entries(net: TransformerWrapper, options: LayerOptions) -> list[Entry]:
    """All weights that x-transformers with these options or our net has; every name of either once."""
    ours = dict(net.named_parameters())
    return [entry for entry in _entries(net, options) if entry.is_there or entry.ours in ours]


def _entries(net: TransformerWrapper, options: LayerOptions) -> Iterator[Entry]:
    norm = _OFFSET if options.norm_add_unit_offset else _SAME
    continuous = net.add_continuous_pred_head
    yield Entry("token_emb.emb.weight", "token_emb.weight", _SAME)
    yield Entry("pos_emb.emb.weight", "pos_emb.weight", _scaled(options.dim**-0.5), not options.rotary_pos_emb)
    inverse = "attn_layers.rotary_pos_emb.inv_freq"
    yield Entry(inverse, "", _SAME, options.rotary_pos_emb, lambda: _frequencies(options))
    parts = ["attention", "cross_attention", "feedforward"] if options.cross_attend else ["attention", "feedforward"]
    tables = {"attention": _attention, "cross_attention": _attention, "feedforward": _feedforward}
    for index, part in enumerate(parts * options.depth):
        there, here = f"attn_layers.layers.{index}", f"attn_layers.blocks.{index // len(parts)}.{part}"
        yield Entry(f"{there}.0.0.{options.norm_name}", f"{here}_norm.weight", norm)
        for entry in tables[part](options):
            yield entry._replace(theirs=f"{there}.1.{entry.theirs}", ours=f"{here}.{entry.ours}")
    yield Entry(f"attn_layers.final_norm.{options.norm_name}", "attn_layers.final_norm.weight", norm)
    yield Entry("to_logits.weight", "to_logits.weight", _SAME, not net.tie_embedding)
    for index in (0, 2):
        name = f"to_next_embed_pred.{index}.weight"
        yield Entry(name, name, _SAME, continuous)


def _attention(options: LayerOptions) -> list[Entry]:
    heads, kv_heads, dim_head, rotated = options.heads, options.kv_heads, options.attn_dim_head, options.rotary_dim
    channels = torch.cat((arange(rotated).view(-1, 2).T.flatten(), arange(rotated, dim_head)))
    query_heads = arange(heads).view(-1, kv_heads).T.flatten()  # ours are sorted by their key head

    def fused(heads: Tensor, channels: Tensor) -> Tensor:
        return (heads[:, None] * dim_head + channels).flatten()

    def gamma() -> Tensor:
        return torch.full((heads, 1, dim_head), query_key_gamma(options) - 1)

    return [
        Entry("to_q.weight", "to_queries.weight", _permuted(fused(query_heads, channels))),
        Entry("to_k.weight", "to_keys.weight", _permuted(fused(arange(kv_heads), channels))),
        Entry("to_v.weight", "to_values.weight", _SAME),
        Entry(
            "to_out.weight",
            "to_out.weight",
            _permuted(fused(query_heads, arange(dim_head)), 1),
            options.project_out,
            lambda: torch.eye(options.dim),
        ),
        Entry("q_rmsnorm.gamma", "query_norm.weight", _of_all_heads(heads, channels), options.attn_qk_rmsnorm, gamma),
        Entry("k_rmsnorm.gamma", "key_norm.weight", _of_all_heads(kv_heads, channels), options.attn_qk_rmsnorm, gamma),
    ]


def _feedforward(options: LayerOptions) -> list[Entry]:
    hidden = int(options.dim * options.ff_mult)
    first, change = ("ff.0.proj", _GATED) if options.ff_glu else ("ff.0.0", _SAME)
    biased = not options.ff_no_bias
    return [
        Entry(f"{first}.weight", "to_hidden.weight", change),
        Entry(f"{first}.bias", "to_hidden.bias", change, biased or options.ff_glu, lambda: torch.zeros(2 * hidden)),
        Entry("ff.2.weight", "to_out.weight", _SAME),
        Entry("ff.2.bias", "to_out.bias", _SAME, biased, lambda: torch.zeros(options.dim)),
    ]


def _frequencies(options: LayerOptions) -> Tensor:
    dim = options.rotary_dim
    base = THETA * options.rotary_base_rescale_factor ** (dim / (dim - 2))
    return 1.0 / base ** (arange(0, dim, 2).float() / dim)
