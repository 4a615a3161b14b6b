"""Tokenizers of exported Llama directories, for `transformers.AutoTokenizer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nar_scale.data import Tokenizer
from nar_scale.data.tokenizers import TOKENIZER_FILE
from nar_scale.errors import UserError

_END_OF_BYTES = "<|endoftext|>"


def save_text_tokenizer(tokenizer: Tokenizer, end_token: int | None, max_seq_len: int, directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, with which transformers gives the ids of a tokenizer.

    The end token also fills up the prompts of a batch, on the left. What the file would add to every text, the model
    has never seen, so it is taken out.

    Args:
        tokenizer: that the model was trained with; raw bytes become a byte-level vocabulary without merges.
        end_token: ends a document; if None, the tokenizer's own.
        max_seq_len: tokens of the longest sequence.
        directory: which exists.

    Raises:
        UserError: the optional package `tokenizers` is not installed.
        OSError: the directory cannot be written.
    """
    path = directory / TOKENIZER_FILE
    tokenizer.save(directory)
    described = _package().Tokenizer.from_file(str(path)) if path.exists() else _describe_bytes()
    before = described.to_str() if path.exists() else None
    if described.num_special_tokens_to_add(False):
        described.post_processor = None
    described.no_truncation()
    described.no_padding()
    if described.to_str() != before:
        path.write_text(described.to_str(pretty=True), encoding="utf-8")
    end_id = tokenizer.end_token if end_token is None else end_token
    end = described.id_to_token(end_id)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "model_max_length": max_seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": tokenizer.encode(end.encode()).tolist() != [end_id],  # then it was text in a text
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _describe_bytes() -> Any:
    """The package's tokenizer whose ids are those of `ByteTokenizer`."""
    package = _package()
    alphabet = sorted(package.pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(letter) for letter in alphabet if ord(letter) < 256]  # these stand for themselves
    others = (byte for byte in range(256) if byte not in printable)
    described = package.Tokenizer(package.models.BPE(dict(zip(alphabet, [*printable, *others])), []))
    described.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    described.decoder = package.decoders.ByteLevel()
    described.add_special_tokens([package.AddedToken(_END_OF_BYTES, normalized=False)])
    return described


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "the tokenizer's export needs an optional package: pip install nar_scale[tokenizers]"
        ) from error
    return tokenizers
