"""Tokenizers, from text to token ids and back: raw bytes, or a Hugging Face `tokenizer.json`."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from nar_scale.data.unspelled_tokens import unspelled
from nar_scale.errors import DataError, UserError
from nar_scale.files import write_atomically
from nar_scale.text import printable

END_TOKEN_NAMES = ("<|endoftext|>", "</s>", "[SEP]", "<eos>")
END_TOKEN_TEXT = "\n<|end|>\n"
UNKNOWN_TOKEN_TEXT = "▒"
TOKENIZER_FILE = "tokenizer.json"
NAMES_IN_MESSAGES = 12

SpecialTokens = Literal["text", "ids"]  # what the name of a special token in a text becomes


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

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the ids of a document, integers `[n]`, without an end token; bytes are UTF-8.

        The dtype may be small and the array read-only: take `.astype(np.int64)` before arithmetic or torch.
        """

    def count_special_tokens(self, text: bytes) -> int:
        """Return how often a text spells out a special token."""

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

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the bytes themselves, uint8 `[n]`, read-only; see `Tokenizer.encode`."""
        return np.frombuffer(text.encode(errors="replace") if isinstance(text, str) else text, dtype=np.uint8)

    def count_special_tokens(self, text: bytes) -> int:
        """Return 0: no text is taken for the end token."""
        return 0

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; bytes that are not UTF-8 become the replacement character."""
        return _decode_runs(ids, self, lambda run: bytes(run).decode("utf-8", errors="replace"))

    def save(self, directory: str | Path) -> None:
        """Write nothing: the name "byte" is all that is needed."""


class HuggingFaceTokenizer:
    """A tokenizer read from a Hugging Face `tokenizer.json` file.

    The truncation and padding that the file asks for are switched off: documents are encoded whole.

    Args:
        path: the file.
        end_token: name or id of the token that ends a document; by default `<|endoftext|>`, `</s>`, `[SEP]` or
            `<eos>`, the first there is.
        special_tokens: "text" encodes a special token that a text spells out like any other text, so that a document
            cannot end in its middle; "ids" as the id of the token, where the file declares it.

    Raises:
        UserError: the optional package `tokenizers` is not installed.
        DataError: the file is missing or damaged, or has no such token.
    """

    name = TOKENIZER_FILE

    def __init__(
        self, path: str | Path, end_token: str | int | None = None, special_tokens: SpecialTokens = "text"
    ) -> None:
        self._text = _read_tokenizer_file(Path(path))
        self.fingerprint = blake2b(self._text, digest_size=8).hexdigest()
        self._tokenizer = _parse_tokenizer(self._text, Path(path))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        name = _end_token_name(vocabulary, special, end_token, path)
        self.end_token: int = vocabulary[name]
        self.vocabulary_size: int = max(vocabulary.values()) + 1
        self._encoder = self._tokenizer
        if special_tokens == "text":
            self._tokenizer.add_special_tokens([name])  # it may be in the file as an ordinary token
            self._tokenizer.encode_special_tokens = True  # as text
            spelled = [token for token in special if vocabulary[token] in self._ids(token)]
            if spelled:
                self._encoder = _parse_tokenizer(unspelled(self._tokenizer.to_str(), spelled).encode(), Path(path))
                self._encoder.encode_special_tokens = True
        self._special = re.compile(b"|".join(re.escape(token.encode()) for token in {*special, name}))

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the ids of a text, int64 `[n]`; bytes that are not UTF-8 become the replacement character."""
        encoded = text.encode(errors="replace") if isinstance(text, str) else text
        return np.array(self._ids(encoded.decode("utf-8", errors="replace")), dtype=np.int64)

    def _ids(self, text: str) -> Sequence[int]:
        ids: Sequence[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def count_special_tokens(self, text: bytes) -> int:
        """Return how often a text spells out a special token; all those that the file has are looked for."""
        return sum(1 for _ in self._special.finditer(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text."""
        return _decode_runs(ids, self, lambda run: self._tokenizer.decode(run, skip_special_tokens=False))

    def save(self, directory: str | Path) -> None:
        """Copy the `tokenizer.json` it was read from, byte for byte, into the directory."""
        write_atomically(Path(directory) / TOKENIZER_FILE, self._text)


def load_tokenizer(
    spec: str | Path,
    directory: str | Path = ".",
    end_token: str | int | None = None,
    special_tokens: SpecialTokens = "text",
) -> Tokenizer:
    """Return the tokenizer that `spec` names.

    Args:
        spec: "byte", or a Hugging Face `tokenizer.json` file, or a directory that holds one.
        directory: where a relative file name starts; for a stored `Tokenizer.name`, the directory of `save`.
        end_token: name or id of the token of a file that ends a document, see `HuggingFaceTokenizer`.
        special_tokens: see `HuggingFaceTokenizer`; nothing is taken for a token of bytes.

    Raises:
        UserError: the optional package `tokenizers` is needed and not installed, or a name is given for bytes.
        DataError: the file is missing, damaged or has no end token.
    """
    if str(spec) == ByteTokenizer.name:
        if isinstance(end_token, str):
            raise UserError(f"end token {end_token!r} goes with a tokenizer.json: bytes have one of their own, id 256")
        return ByteTokenizer()
    return HuggingFaceTokenizer(tokenizer_file(Path(directory) / spec), end_token, special_tokens)


def tokenizer_file(path: str | Path) -> Path:
    """Return the file that holds a tokenizer, given by its own path or that of its directory."""
    return Path(path) / TOKENIZER_FILE if Path(path).is_dir() else Path(path)


def _end_token_name(
    vocabulary: Mapping[str, int], special: Sequence[str], wanted: str | int | None, path: str | Path
) -> str:
    if wanted is None:
        names = [name for name in END_TOKEN_NAMES if name in vocabulary]
    elif isinstance(wanted, str):
        names = [wanted] if wanted in vocabulary else []
    else:
        names = [name for name, number in vocabulary.items() if number == wanted]
    if names:
        return names[0]
    missing = " or ".join(END_TOKEN_NAMES) if wanted is None else wanted if isinstance(wanted, str) else f"id {wanted}"
    shown = ", ".join(special[:NAMES_IN_MESSAGES]) or "none"
    raise DataError(
        f"tokenizer {path} has no token {missing} to end a document; name the one that does with --end-token (its "
        f"special tokens: {printable(shown)})"
    )


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
