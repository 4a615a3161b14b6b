"""A consolidated checkpoint without a training run."""

from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import ModelInfo, run_probe
from nar_scale.checkpoint.consolidated import write_consolidated
from nar_scale.config import validate_config
from nar_scale.data.tokenizers import TOKENIZER_FILE
from nar_scale.decoding import DecodeManifest
from nar_scale.objectives import build_wrapper

KINDS = ("autoregressive", "non_autoregressive", "block_diffusion", "hybrid")
_STEPS = {"autoregressive": None, "non_autoregressive": 4, "block_diffusion": 6, "hybrid": None}
_OBJECTIVES = {
    "autoregressive": {},
    "non_autoregressive": {},
    "block_diffusion": {"block_size": 8},
    "hybrid": {"block_size": 4},
}


def export(
    directory: Path,
    kind: str,
    vocabulary_size: int = 257,
    tokenizer: str | None = "byte",
    tokenizer_file: Path | None = None,
    **sections: Any,
) -> Path:
    """An untrained model of the kind, with sections of its configuration updated."""
    values: dict[str, Any] = {
        "model": {"dim": 16, "depth": 1, "heads": 2, "max_seq_len": 24},
        "objective": {"kind": kind, **_OBJECTIVES[kind]},
        "data": {"directory": "nowhere"},
        "decoding": {"steps": _STEPS[kind]},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    config = validate_config(values, "the test")
    torch.manual_seed(0)
    wrapper = build_wrapper(config, vocabulary_size)
    end_token = None if tokenizer is None else vocabulary_size - 1
    info = ModelInfo(vocabulary_size, tokenizer, 1, 1, "fp32", DecodeManifest.of(config, wrapper.mask_id, end_token))
    write_consolidated(directory, wrapper, config, info, run_probe(wrapper), tokenizer_file)
    return directory


def export_with_tokenizer(directory: Path, tokenizer_file: Path, kind: str = "autoregressive") -> Path:
    """An untrained model with a tokenizer of 257 tokens that is read from a file."""
    return export(directory, kind, tokenizer=TOKENIZER_FILE, tokenizer_file=tokenizer_file)
