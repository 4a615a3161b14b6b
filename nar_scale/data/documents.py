"""Encoding documents in parallel into one long file of tokens per split."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nar_scale.data.parallel import ordered_map, progress_bar
from nar_scale.data.tokenizer import Tokenizer, load_tokenizer
from nar_scale.errors import DataError

BYTES_PER_TASK = 1 << 20
FILES_PER_TASK = 256


class Document(NamedTuple):
    """One encoded file.

    Attributes:
        size: bytes of text.
        fraction: hash of the content, uniform in [0, 1).
        tokens: [n] of the spool's dtype, the end token included.
    """

    size: int
    fraction: float
    tokens: np.ndarray


class Skipped(NamedTuple):
    """One file left out: its size in bytes and the reason, "binary" or "empty"."""

    size: int
    reason: str


class TokenSpool:
    """Temporary files, one per split, to which documents are appended in order.

    Args:
        directory: where the files go; it must be empty.
        dtype: of the tokens in the files.

    Attributes:
        documents, tokens, bytes: totals per split.
    """

    def __init__(self, directory: Path, dtype: np.dtype):
        self.directory = directory
        self.dtype = dtype
        self.documents = Counter[str]()
        self.tokens = Counter[str]()
        self.bytes = Counter[str]()

    def path(self, split: str) -> Path:
        """Return the file that holds the tokens of a split as raw `dtype`."""
        return self.directory / f"{split}.tokens"

    def append(self, split: str, documents: Sequence[Document]) -> None:
        """Append some documents.

        Raises:
            OSError: the file cannot be written.
        """
        with open(self.path(split), "ab") as file:
            for document in documents:
                file.write(document.tokens.tobytes())
        self.documents[split] += len(documents)
        self.tokens[split] += sum(len(document.tokens) for document in documents)
        self.bytes[split] += sum(document.size for document in documents)


def spool_documents(
    files: Sequence[Path],
    spool: TokenSpool,
    tokenizer: str,
    end_token: int,
    validation: float,
    workers: int,
    progress: bool,
) -> dict[str, int]:
    """Encode every file and append it to the split that its content hashes to.

    Args:
        files: one document each, in the order wanted.
        spool: where they go, "validation" or "train".
        tokenizer: the tokenizer's spec; each worker process loads its own.
        end_token: appended to every document.
        validation: fraction of the hash range that goes to "validation".
        workers: processes.
        progress: show a progress bar.

    Returns:
        The number of files skipped, by reason.

    Raises:
        DataError: a file cannot be read.
    """
    skipped = {"binary": 0, "empty": 0}
    sizes = [_size(file) for file in files]
    encode = partial(_encode_files, tokenizer=tokenizer, end_token=end_token, dtype=spool.dtype)
    with progress_bar("encode", sum(sizes), "B", progress) as bar:
        for encoded in ordered_map(encode, _tasks(files, sizes), min(workers, len(files))):
            documents = [document for document in encoded if isinstance(document, Document)]
            spool.append("validation", [document for document in documents if document.fraction < validation])
            spool.append("train", [document for document in documents if document.fraction >= validation])
            for document in encoded:
                bar.update(document.size)
                if isinstance(document, Skipped):
                    skipped[document.reason] += 1
    return skipped


def _tasks(files: Sequence[Path], sizes: Sequence[int]) -> Iterator[list[Path]]:
    task: list[Path] = []
    task_bytes = 0
    for file, size in zip(files, sizes):
        task.append(file)
        task_bytes += size
        if task_bytes >= BYTES_PER_TASK or len(task) == FILES_PER_TASK:
            yield task
            task, task_bytes = [], 0
    if task:
        yield task


def _encode_files(files: Sequence[Path], tokenizer: str, end_token: int, dtype: np.dtype) -> list[Document | Skipped]:
    encoder = _worker_tokenizer(tokenizer)
    documents: list[Document | Skipped] = []
    for file in files:
        text = _read(file)
        if not text or b"\0" in text:
            documents.append(Skipped(len(text), "binary" if text else "empty"))
            continue
        fraction = int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / 2**64
        tokens = np.append(encoder.encode(text), end_token).astype(dtype)
        documents.append(Document(len(text), fraction, tokens))
    return documents


@lru_cache(maxsize=1)
def _worker_tokenizer(spec: str) -> Tokenizer:
    return load_tokenizer(spec)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; make it readable or exclude it") from error


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; make it readable or exclude it") from error
