"""The options of x-transformers that have a counterpart here, with its names and defaults."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from nar_scale.errors import ConfigError

_Options = TypeVar("_Options", bound="LayerOptions | WrapperOptions")

_FIXED = {"pre_norm": True, "pre_norm_has_final_norm": True, "emb_dropout": 0.0, "layer_dropout": 0.0}
"""Options that may be given, with the one value that is implied here."""


@dataclass(frozen=True)
class LayerOptions:
    """Arguments of x-transformers' `Encoder` and `Decoder`, with its defaults."""

    dim: int
    depth: int
    heads: int = 8
    attn_dim_head: int = 64
    attn_kv_heads: int | None = None
    attn_one_kv_head: bool = False
    attn_project_out: bool | None = None
    attn_qk_norm: bool = False
    attn_qk_norm_scale: float = 10.0
    attn_qk_rmsnorm: bool = False
    attn_max_attend_past: int | None = None
    attn_dropout: float = 0.0
    attn_sublayer_dropout: float = 0.0
    attn_flash: bool = False
    cross_attend: bool = False
    cross_attn_dim_context: int | None = None
    ff_mult: float = 4.0
    ff_glu: bool = False
    ff_swish: bool = False
    ff_no_bias: bool = False
    ff_dropout: float = 0.0
    ff_sublayer_dropout: float = 0.0
    use_rmsnorm: bool = False
    norm_add_unit_offset: bool = True
    rotary_pos_emb: bool = False
    rotary_emb_dim: int | None = None
    rotary_interpolation_factor: float = 1.0
    rotary_base_rescale_factor: float = 1.0
    verbose: bool = True

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return 1 if self.attn_one_kv_head else self.attn_kv_heads or self.heads

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        if not self.rotary_pos_emb:
            return 0
        return self.attn_dim_head // 2 if self.rotary_emb_dim is None else self.rotary_emb_dim

    @property
    def project_out(self) -> bool:
        """Whether attention ends in a projection."""
        return self.heads > 1 if self.attn_project_out is None else self.attn_project_out

    @property
    def norm_name(self) -> str:
        """What the gamma of a norm is called."""
        return "g" if self.use_rmsnorm else "gamma"


@dataclass(frozen=True)
class WrapperOptions:
    """Arguments of x-transformers' `TransformerWrapper`, with its defaults."""

    num_tokens: int
    max_seq_len: int
    tie_embedding: bool = False
    tie_embedding_scale: float | None = None
    logits_dim: int | None = None
    add_continuous_pred_head: bool = False
    attn_z_loss_weight: float = 1e-4
    use_abs_pos_emb: bool = True


def given(options: LayerOptions | WrapperOptions) -> dict[str, Any]:
    """The options that differ from x-transformers' defaults."""
    values = ((field, getattr(options, field.name)) for field in fields(options))
    return {field.name: value for field, value in values if field.default is MISSING or value != field.default}


def parse_options(options: dict[str, Any]) -> tuple[WrapperOptions, LayerOptions]:
    """Sort keyword arguments of x-transformers into those of the wrapper and those of the layers.

    Raises:
        ConfigError: some have no counterpart here, or are missing; all of them are named.
    """
    _check(options, (WrapperOptions, LayerOptions))
    return _pick(WrapperOptions, options), _pick(LayerOptions, options)


def parse_layer_options(options: dict[str, Any]) -> LayerOptions:
    """Keyword arguments of x-transformers' `Encoder` or `Decoder`; errors as of `parse_options`."""
    _check(options, (LayerOptions,))
    return _pick(LayerOptions, options)


def parse_wrapper_options(options: dict[str, Any]) -> WrapperOptions:
    """Keyword arguments of x-transformers' `TransformerWrapper` but its layers; errors as of `parse_options`."""
    _check(options, (WrapperOptions,))
    return _pick(WrapperOptions, options)


def _check(options: dict[str, Any], kinds: tuple[type[LayerOptions] | type[WrapperOptions], ...]) -> None:
    known = {field.name: field for kind in kinds for field in fields(kind)}
    problems = [problem for name, value in options.items() if (problem := _problem(name, value, list(known)))]
    lacking = [name for name, field in known.items() if field.default is MISSING and name not in options]
    if problems:
        raise ConfigError(f"of the x-transformers options {'; '.join(problems)}")
    if lacking:
        raise ConfigError(f"the x-transformers option {' and '.join(lacking)} is missing")


def _problem(name: str, value: Any, known: list[str]) -> str | None:
    """Why an option cannot be taken; None if it can."""
    if name in _FIXED:
        return None if value == _FIXED[name] else f"{name} can only be {_FIXED[name]} here, not {value}"
    if name not in known:
        near = get_close_matches(name, known, 1)
        return f"{name} has no counterpart here{f' (did you mean {near[0]}?)' if near else ''}"
    return f"{name} differs from layer to layer, which is not supported" if isinstance(value, tuple) else None


def _pick(kind: type[_Options], options: dict[str, Any]) -> _Options:
    return kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options})
