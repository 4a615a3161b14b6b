"""Nets from and to x-transformers (github.com/lucidrains/x-transformers, as of 2.31), which need not be installed.

What is computed is the same; what cannot be represented is refused by name. The differences between the two:

rotary pairs    channels (2i, 2i + 1) of a head there, (i, i + r) here
query heads     head h uses key head h % kv_heads there, h // (heads / kv_heads) here
gated units     the projection's halves are (value, gate) there, (gate, value) here
gammas          stored less 1 there, unless told otherwise
learned table   divided by sqrt(dim) there
padding         a padded query's embedding is set to 0 in each layer there; the others never see it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nar_scale.checkpoint.consolidated import LoadedModel
from nar_scale.checkpoint.directory import written_whole
from nar_scale.checkpoint.shards import SHARD_BYTES, save_weights
from nar_scale.errors import CheckpointError
from nar_scale.interop.x_transformers.nets import build_net, describe_net
from nar_scale.interop.x_transformers.options import given, parse_options
from nar_scale.interop.x_transformers.weights import GATE_BIAS, Entry, list_entries
from nar_scale.model import Decoder, Encoder, TransformerWrapper

_TOKENS = "token_emb.emb.weight"
_WRAPPED = "net."


class XTransformersExport(NamedTuple):
    """What makes the same net in x-transformers.

    `x_transformers.TransformerWrapper(**wrapper_options, attn_layers=Decoder(**layer_options))` (or `Encoder`) loads
    `state_dict` strictly.

    Attributes:
        state_dict: weights by x-transformers' names.
        wrapper_options: arguments of its `TransformerWrapper`.
        layer_options: arguments of its `Encoder` or `Decoder`.
    """

    state_dict: dict[str, Tensor]
    wrapper_options: dict[str, Any]
    layer_options: dict[str, Any]


@torch.no_grad()
def from_x_transformers(
    state_dict: dict[str, Tensor],
    attn_layers: type[Encoder] | type[Decoder],
    *,
    max_seq_len: int,
    **options: Any,
) -> TransformerWrapper:
    """The net of a state dict of x-transformers, in eval mode on the CPU.

    With `attn_dropout` and `ff_dropout`, training here also drops block outputs, as if `attn_sublayer_dropout` and
    `ff_sublayer_dropout` were set.

    Args:
        state_dict: of its `TransformerWrapper`, or of a wrapper around it that calls it `net`.
        attn_layers: which of ours takes the place of its `Encoder` or `Decoder`.
        max_seq_len: as given to its `TransformerWrapper`.
        options: the other arguments of its `TransformerWrapper` and its layers, by its names and with its defaults
            (`LayerOptions`, `WrapperOptions`); `num_tokens` follows from the state dict.

    Raises:
        ConfigError: an option without counterpart.
        CheckpointError: a weight without counterpart, a missing one, or one of another shape.
    """
    state = {name.removeprefix(_WRAPPED): value.cpu() for name, value in state_dict.items()}
    if _TOKENS not in state:
        raise CheckpointError(f"the state dict lacks {_TOKENS}")
    given_options = {"num_tokens": len(state[_TOKENS]), **options, "max_seq_len": max_seq_len}
    wrapper, layers = parse_options(given_options)
    biases = not layers.ff_no_bias or any(name.endswith(GATE_BIAS) and value.any() for name, value in state.items())
    with torch.device("meta"):
        net = build_net(Decoder if attn_layers.causal else Encoder, wrapper, layers, biases)
    net.to_empty(device="cpu").to(state[_TOKENS].dtype).tie_weights()
    weights = dict(net.named_parameters())
    for entry in list_entries(net, layers):
        _import(entry, state, weights.get(entry.ours))
    if state:
        names = ", ".join(sorted(state)[:3])
        raise CheckpointError(f"the state dict holds {names} ({len(state)} in all), which the options do not describe")
    return net.eval()


@torch.no_grad()
def to_x_transformers(net: TransformerWrapper, *, ignore_norm_eps: bool = False) -> XTransformersExport:
    """A net as x-transformers has it; bit by bit, but for the rounding of a learned table and query/key gammas.

    The weights are copies, on the CPU.

    Args:
        ignore_norm_eps: accept norms with another epsilon than x-transformers has (1e-5 in LayerNorm, none in
            RMSNorm), although results then differ slightly.

    Raises:
        ConfigError: the net has what x-transformers cannot represent.
    """
    wrapper, layers = describe_net(net, ignore_norm_eps)
    weights = {name: weight.cpu() for name, weight in net.named_parameters()}
    state = {
        entry.theirs: entry.to_theirs(weights[entry.ours]).clone() if entry.ours in weights else entry.stand_in()
        for entry in list_entries(net, layers)
        if entry.is_there
    }
    return XTransformersExport(state, given(wrapper), given(layers))


def export_x_transformers(
    model: LoadedModel, directory: str | Path, *, ignore_norm_eps: bool = False, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write what `to_x_transformers` returns as `model.safetensors` and `options.json`, and the tokenizer if any.

    Raises:
        ConfigError: the net has what x-transformers cannot represent.
        CheckpointError: weights around the net, such as a token critic's; or the directory exists or cannot be written.
    """
    around = [name for name, _ in model.wrapper.named_parameters() if not name.startswith(_WRAPPED)]
    if around:
        raise CheckpointError(
            f"the weight {around[0]} is outside the net ({len(around)} in all); x-transformers has none"
        )
    export = to_x_transformers(model.wrapper.net, ignore_norm_eps=ignore_norm_eps)
    options = {
        "attn_layers": type(model.wrapper.net.attn_layers).__name__,
        "wrapper_options": export.wrapper_options,
        "layer_options": export.layer_options,
    }
    with written_whole(Path(directory)) as writing:
        save_weights(writing, export.state_dict, "model", shard_bytes)
        (writing / "options.json").write_text(json.dumps(options, indent=2) + "\n")
        if model.tokenizer is not None:
            model.tokenizer.save(writing)


def _import(entry: Entry, state: dict[str, Tensor], target: Tensor | None) -> None:
    """Take a weight of theirs out of `state`, and put it into ours."""
    if entry.is_there:
        if entry.theirs not in state:
            raise CheckpointError(f"the state dict lacks {entry.theirs}, which the options describe")
        value = state.pop(entry.theirs)
        expected = entry.stand_in() if target is None else entry.to_theirs(target)
        if value.shape != expected.shape:
            shapes = f"{list(value.shape)}, the options describe {list(expected.shape)}"
            raise CheckpointError(f"{entry.theirs} has shape {shapes}")
        tolerance = 1e-5 if value.dtype == torch.float32 else 0.01
        if target is None and not torch.allclose(value.float(), expected, rtol=tolerance):
            raise CheckpointError(f"{entry.theirs} holds other values than the options describe")
    else:
        value = entry.stand_in()
    if target is not None:
        try:
            target.copy_(entry.to_ours(value))
        except ValueError as error:
            raise CheckpointError(f"{entry.theirs}: {error}") from None
