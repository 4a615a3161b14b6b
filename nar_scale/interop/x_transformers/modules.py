"""The modules of x-transformers by their names, with its options and defaults, made of ours."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nar_scale import model, objectives
from nar_scale.errors import ConfigError
from nar_scale.interop.x_transformers.nets import as_their_norms, layer_arguments, query_key_gamma, wrapper_arguments
from nar_scale.interop.x_transformers.options import LayerOptions, parse_layer_options, parse_wrapper_options
from nar_scale.model.attention import Attention
from nar_scale.model.kv_cache import KeyValueCache
from nar_scale.model.stack import AttentionLayers

_ONLY: dict[str, Any] = {"restrict_to_max_seq_len": True, "return_intermediates": False}
"""Arguments of generation that may be given, with the one value that is implied here."""


class Encoder(model.Encoder):
    """Our `Encoder` with the options of x-transformers', see `LayerOptions`; it is initialised as ours.

    Raises:
        ConfigError: options without counterpart, or that contradict each other; all of them are named.
    """

    def __init__(self, **options: Any):
        layers = parse_layer_options(options)
        super().__init__(**layer_arguments(layers, causal=False, biases=not layers.ff_no_bias))
        _begin_as_theirs(self, layers)


class Decoder(model.Decoder):
    """Our `Decoder` with the options of x-transformers', as `Encoder`."""

    def __init__(self, **options: Any):
        layers = parse_layer_options(options)
        super().__init__(**layer_arguments(layers, causal=True, biases=not layers.ff_no_bias))
        _begin_as_theirs(self, layers)


class TransformerWrapper(model.TransformerWrapper):
    """Our `TransformerWrapper` with the options of x-transformers', see `WrapperOptions`.

    Positions of a learned table count prepended embeddings too, which x-transformers gives none.

    Args:
        attn_layers: an `Encoder` or a `Decoder`, of this module or ours.
        options: the others of x-transformers.

    Raises:
        ConfigError: options without counterpart, or that contradict each other; all of them are named.
    """

    def __init__(self, *, attn_layers: AttentionLayers, **options: Any):
        super().__init__(attn_layers=attn_layers, **wrapper_arguments(parse_wrapper_options(options), attn_layers))

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        pos: Tensor | None = None,
        cache: KeyValueCache | None = None,
        **arguments: Any,
    ) -> Any:
        """Run the net; further arguments and what is returned are as of `nar_scale.TransformerWrapper`.

        Args:
            x: token ids, int64 `[batch, n]`.
            mask: bool `[batch, n]`, true for tokens that are attended to; or with prepended and cached ones.
            prepend_embeds: a prefix of embeddings, `[batch, prefix, dim]`; the result covers it too.
            prepend_mask: bool `[batch, prefix]`, true for those of them that are attended to.
            pos: positions, int64 `[n]` or `[batch, n]`.
            cache: keys and values of earlier tokens.
        """
        prefix = 0 if prepend_embeds is None else prepend_embeds.shape[1]
        if mask is not None and prefix and mask.shape[1] == x.shape[1]:
            mask = F.pad(mask, (prefix, 0), value=True)
        if prepend_mask is not None:
            tokens = prefix + x.shape[1]
            keys = tokens if cache is None else cache.keys_after(tokens)
            seen = F.pad(prepend_mask, (0, keys - prepend_mask.shape[1]), value=True)
            mask = seen if mask is None else mask & seen
        if pos is not None:
            arguments["positions"] = pos
        return super().forward(x, mask=mask, prepend_embeds=prepend_embeds, cache=cache, **arguments)


class AutoregressiveWrapper(objectives.AutoregressiveWrapper):
    """Our `AutoregressiveWrapper`, whose results of generation have x-transformers' layout.

    Other arguments, those of `generate` and `beam_search` too, are as of ours.
    """

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """Continue prompts; returns the continuations alone, int64 `[batch, seq_len]` or shorter.

        Raises:
            ConfigError: an option of x-transformers that has only one value here.
        """
        return super().generate(*arguments, **{**_without_fixed(options), "return_prompt": False})

    def beam_search(self, *arguments: Any, **options: Any) -> Any:
        """The most probable continuations, int64 `[batch, seq_len]`.

        With `return_beams_and_scores` all beams `[beams, batch, seq_len]`, the most probable first, and their
        log-probabilities in nats, `[beams, batch]`.

        Raises:
            ConfigError: an option of x-transformers that has only one value here.
        """
        found = super().beam_search(*arguments, **_without_fixed(options))
        if not isinstance(found, tuple):
            return found
        tokens, scores = found
        return (tokens.transpose(0, 1), scores.transpose(0, 1)) if tokens.ndim == 3 else found


def _begin_as_theirs(stack: AttentionLayers, layers: LayerOptions) -> None:
    as_their_norms(stack)
    for attention in stack.modules() if layers.attn_qk_norm else ():
        if isinstance(attention, Attention):
            for gamma in (*attention.query_norm.parameters(), *attention.key_norm.parameters()):
                nn.init.constant_(gamma, query_key_gamma(layers))


def _without_fixed(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in _ONLY.items():
        if options.get(name, value) != value:
            raise ConfigError(f"the x-transformers option {name} can only be {value} here, not {options[name]}")
    return {name: value for name, value in options.items() if name not in _ONLY}
