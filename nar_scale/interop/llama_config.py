"""`config.json` of a Hugging Face Llama directory, as far as this library has what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from nar_scale.errors import CheckpointError, ConfigError

LLAMA_CONFIG_FILE = "config.json"
_DEFAULT_THETA = 10_000.0
_ROPE_SCALING = ("default", "linear")


class LlamaConfig(BaseModel):
    """The keys of `config.json` that say what is computed, with the defaults of transformers.

    Sizes have none here: a directory of weights states them.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model_type: str
    architectures: list[str] | None = None
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    max_position_embeddings: PositiveInt = 2048
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    tie_word_embeddings: bool = False
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = None

    @property
    def end_token(self) -> int | None:
        """The token that ends a text, the first if there are several; None if none is named."""
        if isinstance(self.eos_token_id, list):
            return self.eos_token_id[0] if self.eos_token_id else None
        return self.eos_token_id

    def model_section(self) -> dict[str, Any]:
        """The section `model` of the configuration that builds the same network."""
        rope = self._rope
        return {
            "dim": self.hidden_size,
            "depth": self.num_hidden_layers,
            "heads": self.num_attention_heads,
            "kv_heads": self.num_key_value_heads,
            "dim_head": self.head_dim,
            "max_seq_len": self.max_position_embeddings,
            "feedforward": "swiglu",
            "feedforward_dim": self.intermediate_size,
            "norm": "rmsnorm",
            "norm_eps": self.rms_norm_eps,
            "positions": "rotary",
            "rotary_theta": rope.get("rope_theta") or self.rope_theta or _DEFAULT_THETA,
            "rotary_interpolation_factor": rope.get("factor", 1.0) if self._rope_kind == "linear" else 1.0,
            "dropout": self.attention_dropout,
            "tie_embeddings": self.tie_word_embeddings,
        }

    def refusals(self) -> list[str]:
        """What the directory asks for that this library does not have, each as `key value`."""
        architecture = (self.architectures or ["LlamaForCausalLM"])[0]
        partial = self._rope.get("partial_rotary_factor", 1.0)
        checks = [
            (self.model_type != "llama", f"model_type {self.model_type!r}, only 'llama'"),
            (architecture != "LlamaForCausalLM", f"architectures {architecture!r}, only 'LlamaForCausalLM'"),
            (self.quantization_config is not None, "quantization_config; save it without quantization"),
            (self.attention_bias, "attention_bias true"),
            (self.mlp_bias, "mlp_bias true"),
            (self.hidden_act not in ("silu", "swish"), f"hidden_act {self.hidden_act!r}, only 'silu'"),
            (
                self._rope_kind not in _ROPE_SCALING,
                f"rope_type {self._rope_kind!r}, only {' and '.join(map(repr, _ROPE_SCALING))}",
            ),
            (partial != 1, f"partial_rotary_factor {partial}, only 1"),
        ]
        return [reason for refused, reason in checks if refused]

    @property
    def _rope(self) -> dict[str, Any]:
        """Of transformers 5, or before it of transformers 4, which has theta elsewhere."""
        return self.rope_parameters or self.rope_scaling or {}

    @property
    def _rope_kind(self) -> str:
        return str(self._rope.get("rope_type", self._rope.get("type", "default")))


def read_llama_config(directory: Path) -> LlamaConfig:
    """Read and check the `config.json` of a directory.

    Raises:
        CheckpointError: it cannot be read, or is not the description of a Llama model.
        ConfigError: it asks for what this library does not have.
    """
    path = directory / LLAMA_CONFIG_FILE
    try:
        config = LlamaConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; give a directory in Hugging Face's Llama layout"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise CheckpointError(
            f"{path} does not describe a Llama model: {f'{key}: ' if key else ''}{problem['msg']}"
        ) from None
    if refusals := config.refusals():
        raise ConfigError(f"{path} asks for what nar_scale does not have: {'; '.join(refusals)}")
    return config
