"""Hugging Face Llama directories as consolidated checkpoints: to generate, fine-tune, or start others from them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from nar_scale.checkpoint import ModelInfo, run_probe
from nar_scale.checkpoint.consolidated import write_consolidated
from nar_scale.checkpoint.model_card import model_card
from nar_scale.checkpoint.shards import SHARD_BYTES
from nar_scale.checkpoint.streaming import read_as_it_runs
from nar_scale.config import Config, LeftToRightDecoding, validate_config
from nar_scale.data import Tokenizer, load_tokenizer
from nar_scale.data.tokenizers import TOKENIZER_FILE, SpecialTokens
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import CheckpointError, DataError, UserError
from nar_scale.interop.llama_config import LLAMA_CONFIG_FILE, LlamaConfig, read_llama_config
from nar_scale.interop.llama_weights import LlamaWeights
from nar_scale.objectives import build_wrapper
from nar_scale.text import message_of

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_FINE_TUNING: dict[str, Any] = {  # where a run may start from; Llama 2 was fine-tuned with this rate (arXiv:2307.09288)
    "optimizer": {"learning_rate": 2e-5},
    "schedule": {"warmup_steps": 100},
    "training": {"steps": 1000, "global_batch_size": 64, "micro_batch_size": 1},
}

_logger = logging.getLogger(__name__)


@torch.no_grad()
def import_llama(
    directory: str | Path, output: str | Path, *, end_token: str | int | None = None, shard_bytes: int = SHARD_BYTES
) -> float:
    """Write the consolidated checkpoint of an autoregressive model that computes what the Llama directory describes.

    It is the inverse of `export_llama`. The weights keep their dtype and their values, and are read, checked and
    written one at a time. `config.yaml` is that of a run that fine-tunes the model; its `data.directory` is still to be
    made, and its `decoding` has the temperature, `top_k` and `top_p` of `generation_config.json`. The tokenizer is that
    of `tokenizer.json`, where there is one.

    Args:
        directory: with `config.json` and `model.safetensors`, or several files of weights and their index.
        output: the directory to create.
        end_token: name or id of the token that ends a document; if None that of `config.json`, or else as in
            `HuggingFaceTokenizer`.
        shard_bytes: size of a file of weights, at most.

    Returns:
        the largest difference between the logits of the directory's weights and of the checkpoint's, over the largest.

    Raises:
        ConfigError: the model has what this library cannot represent.
        CheckpointError: the directory is not one of a Llama model, weights are missing, unknown or of other shapes, or
            the output exists or cannot be written.
        DataError: the tokenizer is damaged, or has another vocabulary than the model or no end token.
        UserError: the optional package `tokenizers` is needed and not installed.
    """
    directory, output = Path(directory), Path(output)
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or choose another --output")
    llama = read_llama_config(directory)
    config = _describe_run(llama, directory, output, torch.float32)
    with torch.device("meta"):
        wrapper, probed = (build_wrapper(config, llama.vocab_size) for _ in range(2))
    weights = LlamaWeights(directory, wrapper)
    config = _describe_run(llama, directory, output, weights.dtype)
    tokenizer, special_tokens = _open_tokenizer(directory, llama, end_token)
    read_as_it_runs(probed.eval(), weights.__getitem__)
    last = _end_token_id(tokenizer, llama, end_token)
    info = ModelInfo(
        vocabulary_size=llama.vocab_size,
        tokenizer=None if tokenizer is None else tokenizer.name,
        step=0,
        samples=0,
        dtype=config.training.precision,
        decode=DecodeManifest.of(config, None, last),
        special_tokens=special_tokens,
    )
    return write_consolidated(
        output,
        wrapper.to(weights.dtype),
        config,
        info,
        run_probe(probed),
        None if tokenizer is None else directory / TOKENIZER_FILE,
        shard_bytes,
        weights,
        card=model_card(output.name, config, info, wrapper),
    )


def _describe_run(llama: LlamaConfig, directory: Path, output: Path, dtype: torch.dtype) -> Config:
    training = {**_FINE_TUNING["training"], "precision": _PRECISIONS[dtype], "run_directory": f"runs/{output.name}"}
    values = {
        "model": llama.model_section(),
        "objective": {"kind": "autoregressive"},
        # the table may have more rows than the tokenizer has ids
        "data": {"directory": f"data/{output.name}", "vocabulary_size": llama.vocab_size},
        "decoding": _decoding(directory / "generation_config.json"),
        **_FINE_TUNING,
        "training": training,
    }
    return validate_config(values, str(directory / LLAMA_CONFIG_FILE))


def _open_tokenizer(
    directory: Path, llama: LlamaConfig, end_token: str | int | None
) -> tuple[Tokenizer | None, SpecialTokens]:
    """The tokenizer of a directory if there is one, and what it makes of special tokens that a text spells out."""
    file = directory / TOKENIZER_FILE
    if not file.exists():
        if isinstance(end_token, str):
            raise UserError(
                f"--end-token {end_token!r} is a name, but {directory} has no {TOKENIZER_FILE}; give its id"
            )
        _logger.warning("%s has no %s, so the checkpoint takes and gives token ids alone", directory, TOKENIZER_FILE)
        return None, "ids"
    special_tokens = _special_tokens(directory / "tokenizer_config.json")
    tokenizer = load_tokenizer(
        file, end_token=llama.end_token if end_token is None else end_token, special_tokens=special_tokens
    )
    if tokenizer.vocabulary_size > llama.vocab_size:
        raise DataError(
            f"{file} has {tokenizer.vocabulary_size} token ids, but vocab_size in {LLAMA_CONFIG_FILE} is "
            f"{llama.vocab_size}; it is the tokenizer of another model"
        )
    return tokenizer, special_tokens


def _end_token_id(tokenizer: Tokenizer | None, llama: LlamaConfig, wanted: str | int | None) -> int | None:
    if tokenizer is not None:
        return tokenizer.end_token
    end_token = llama.end_token if wanted is None else int(wanted)
    if end_token is not None and end_token >= llama.vocab_size:
        raise UserError(f"the end token {end_token} is outside the vocabulary of {llama.vocab_size}; see --end-token")
    return end_token


def _decoding(path: Path) -> dict[str, Any]:
    """The section `decoding` with the temperature, `top_k` and `top_p` of a file that transformers reads, too."""
    described = _read(path)
    given = {name: described[name] for name in ("temperature", "top_k", "top_p") if described.get(name) is not None}
    if described.get("do_sample") is False:
        given = {"temperature": 0.0}
    none_at = {"top_k": 0, "top_p": 1}
    values = {name: value for name, value in given.items() if value != none_at.get(name)}
    try:
        decoding = LeftToRightDecoding.model_validate({"sampler": "left_to_right", **values}, strict=False)
    except ValidationError as error:
        problem = error.errors()[0]
        raise DataError(
            f"{path}: {problem['loc'][0]}: {message_of(problem)}, got {problem['input']!r:.60}; mend or remove the file"
        ) from None
    return decoding.model_dump(include=set(values))  # without the sampler, so that a run of another kind may start here


def _read(path: Path) -> dict[str, Any]:
    """An object of a JSON file; an empty one if there is no such file, or something else in it."""
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch it anew, or remove it") from None
    return described if isinstance(described, dict) else {}


def _special_tokens(path: Path) -> SpecialTokens:
    """As transformers does: their ids, unless `split_special_tokens` is set."""
    return "text" if _read(path).get("split_special_tokens") else "ids"
