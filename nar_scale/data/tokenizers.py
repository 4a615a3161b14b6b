"""Tokenizers, from text to token ids and back: raw bytes, or a Hugging Face `tokenizer.json`."""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nar_scale.errors import DataError, UserError
from nar_scale.files import write_atomically

END_TOKEN_NAMES = ("<|endoftext|>", "</s>", "[SEP]", "<eos>")
END_TOKEN_TEXT = "\n<|end|>\n"
UNKNOWN_TOKEN_TEXT = "▒"
TOKENIZER_FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """The interface of all tokenizers.

    Attributes:
        name: stored beside data or a checkpoint, so that `load_tokenizer(name, directory)` finds the tokenizer again.
        vocabulary_size: number of ids, the end token included; every id is below it.
        end_token: the id that ends a document.
        fingerprint: two tokenizers with the same one give the same ids.
    """

    name: str
    vocabulary_size: int
    end_token: int
    fingerprint: str

    def encode(self, text: bytes) -> np.ndarray:
        """Return the ids of a document, integers `[n]`, without an end token.

        The dtype may be small and the array read-only: take `.astype(np.int64)` before arithmetic or torch.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Return readable text; an end token is spelled out, an id outside the vocabulary shows as a block."""

    def save(self, directory: str | Path) -> None:
        """Write the file that `load_tokenizer(self.name, directory)` needs into an existing directory."""


class ByteTokenizer:
    """Bytes as tokens: ids 0..255 are the bytes, 256 ends a document. No vocabulary file is needed."""

    name = "byte"
    vocabulary_size = 257
    end_token = 256
    fingerprint = "byte"

    def encode(self, text: bytes) -> np.ndarray:
        """Return the bytes themselves, uint8 `[len(text)]`, read-only; see `Tokenizer.encode`."""
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; bytes that are not UTF-8 become the replacement character."""
        return _decode_runs(ids, self, lambda run: bytes(run).decode("utf-8", errors="replace"))

    def save(self, directory: str | Path) -> None:
        """Write nothing: the name "byte" is all that is needed."""


class HuggingFaceTokenizer:
    """A tokenizer read from a Hugging Face `tokenizer.json` file.

    The truncation and padding that the file asks for are switched off: documents are encoded whole.

    Args:
        path: the file; its `<|endoftext|>`, `</s>`, `[SEP]` or `<eos>` token, the first it has, ends a document.

    Raises:
        UserError: the optional package `tokenizers` is not installed.
        DataError: the file is missing or damaged, or has none of these tokens.
    """

    name = TOKENIZER_FILE

    def __init__(self, path: str | Path):
        self._text = _read_tokenizer_file(Path(path))
        self.fingerprint = blake2b(self._text, digest_size=8).hexdigest()
        self._tokenizer = _parse_tokenizer(self._text, Path(path))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        end_tokens = [vocabulary[name] for name in END_TOKEN_NAMES if name in vocabulary]
        if not end_tokens:
            names = ", ".join(END_TOKEN_NAMES)
            raise DataError(f"tokenizer {path} has no token to end a document; add one of {names} to it")
        self.end_token: int = end_tokens[0]
        self.vocabulary_size: int = max(vocabulary.values()) + 1

    def encode(self, text: bytes) -> np.ndarray:
        """Return the ids of UTF-8 text, int64 `[n]`; bytes that are not UTF-8 become the replacement character."""
        encoding = self._tokenizer.encode(text.decode("utf-8", errors="replace"), add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text."""
        return _decode_runs(ids, self, lambda run: self._tokenizer.decode(run, skip_special_tokens=False))

    def save(self, directory: str | Path) -> None:
        """Copy the `tokenizer.json` it was read from, byte for byte, into the directory."""
        write_atomically(Path(directory) / TOKENIZER_FILE, self._text)


def load_tokenizer(spec: str | Path, directory: str | Path = ".") -> Tokenizer:
    """Return the tokenizer that `spec` names.

    Args:
        spec: "byte", or a Hugging Face `tokenizer.json` file, or a directory that holds one.
        directory: where a relative file name starts; for a stored `Tokenizer.name`, the directory of `save`.

    Raises:
        UserError: the optional package `tokenizers` is needed and not installed.
        DataError: the file is missing, damaged or has no end token.
    """
    if str(spec) == ByteTokenizer.name:
        return ByteTokenizer()
    path = Path(directory) / spec
    return HuggingFaceTokenizer(path / TOKENIZER_FILE if path.is_dir() else path)


def _decode_runs(ids: Iterable[int], tokenizer: Tokenizer, decode_run: Callable[[list[int]], str]) -> str:
    def spelling(token: int) -> str | None:
        if token == tokenizer.end_token:
            return END_TOKEN_TEXT
        return None if 0 <= token < tokenizer.vocabulary_size else UNKNOWN_TOKEN_TEXT

    pieces = []
    for special, run in groupby(map(int, ids), key=spelling):
        tokens = list(run)
        pieces.append(decode_run(tokens) if special is None else special * len(tokens))
    return "".join(pieces)


def _read_tokenizer_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror
        raise DataError(f"cannot read tokenizer {path}: {reason}; give 'byte' or a tokenizer.json file") from error


def _parse_tokenizer(text: bytes, path: Path) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(f"tokenizer {path} needs an optional package: pip install nar_scale[tokenizers]") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text.decode("utf-8"))
    except Exception as error:  # the package raises a bare Exception for a damaged file
        reason = str(error).splitlines()[0]
        raise DataError(f"tokenizer {path} is not a Hugging Face tokenizer.json file: {reason}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
