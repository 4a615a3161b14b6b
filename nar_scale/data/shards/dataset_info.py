"""The description of a prepared data set: `dataset.json`."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval, Len
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, with_config

from nar_scale.data.shards.publish_marker import refuse_half_published
from nar_scale.data.storage.remote import read_small
from nar_scale.data.storage.urls import is_remote
from nar_scale.data.tokenizers import SpecialTokens
from nar_scale.errors import DataError
from nar_scale.files import write_atomically
from nar_scale.text import printable

INFO_FILE = "dataset.json"
MAX_INFO_BYTES = 1 << 28  # tokenizers are a few MB


TOKENIZERS = ("byte", "tokenizer.json", None)  # never a path: it would be read, and copied into checkpoints
MAX_VOCABULARY, MAX_SHARDS = 1 << 28, 1 << 24  # for which there is memory to count tokens and to list names


def _known_tokenizer(name: str | None) -> str | None:
    if name not in TOKENIZERS:
        raise ValueError(f"none of {', '.join(map(str, TOKENIZERS))}")
    return name


Count = Annotated[int, Interval(ge=0, lt=2**63)]
PositiveCount = Annotated[int, Interval(ge=1, lt=2**63)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class SplitInfo:
    """The size of one split.

    Attributes:
        documents: number of documents.
        samples: number of samples; all but the last hold `seq_len` tokens.
        tokens: number of tokens, one end token per document included.
        bytes: size of the text of which the tokens are; 0 if some of them are not of text.
        shards: number of tar files.
    """

    documents: PositiveCount
    samples: PositiveCount
    tokens: PositiveCount
    bytes: Count
    shards: Annotated[PositiveCount, Interval(le=MAX_SHARDS)]

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text for each token, on average; None where there is no text."""
        return self.bytes / self.tokens if self.bytes else None


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class DatasetInfo:
    """The contents of `dataset.json`.

    Attributes:
        tokenizer: "byte" or "tokenizer.json"; read it with `load_tokenizer(info.tokenizer, directory)`. None where
            tokens are not of text.
        vocabulary_size: number of token ids, the end token included.
        end_token: the id that ends a document; None if there is none.
        seq_len: tokens in a sample.
        field: the WebDataset field that holds the tokens.
        splits: sizes of "train" and, unless none was asked for, of "validation".
        skipped: files and documents left out, counted by reason ("hidden", "binary", "empty", "no text").
        document_field: the field with the document of each token; None if it was not asked for.
        num_classes: one more than the largest class; None where samples have no class.
        special_tokens: how special tokens that the text spells out were encoded, see `HuggingFaceTokenizer`; "ids"
            where the file does not say.
    """

    tokenizer: Annotated[str | None, AfterValidator(_known_tokenizer)]
    vocabulary_size: Annotated[PositiveCount, Interval(le=MAX_VOCABULARY)]
    end_token: Count | None
    seq_len: PositiveCount
    field: str
    splits: Annotated[dict[str, SplitInfo], Len(min_length=1)]
    skipped: dict[str, Count]
    document_field: str | None = None
    num_classes: PositiveCount | None = None
    special_tokens: SpecialTokens = "ids"

    @classmethod
    def find(cls, directory: str, storage_options: Mapping[str, Any]) -> "DatasetInfo | None":
        """Read `dataset.json` from a local or remote directory; return None if there is none.

        Args:
            directory: path or URL.
            storage_options: arguments of the file system of fsspec, for a remote directory.

        Raises:
            DataError: there is no such local directory, it is one that `prepare.py` has not finished, or the file is
                damaged.
        """
        if is_remote(directory):
            path = f"{directory.rstrip('/')}/{INFO_FILE}"
            content = read_small(path, storage_options, MAX_INFO_BYTES)
            return None if content is None else cls._parse(content, path)
        check_directory(directory)
        if (Path(directory) / INFO_FILE).exists():
            return cls.load(directory)
        refuse_half_published(Path(directory))
        return None

    @staticmethod
    def fetch(directory: str, name: str, storage_options: Mapping[str, Any], cache_directory: str | None) -> str:
        """Return the absolute path of a file that belongs to a data set, fetching it into the cache if it is remote.

        Args:
            directory: of the data set, a path or URL.
            name: of the file in it.
            storage_options: arguments of the file system of fsspec, for a remote directory.
            cache_directory: a directory on this node, for a remote directory.

        Raises:
            DataError: the file is missing, or there is no cache directory.
        """
        if not is_remote(directory):
            return str((Path(directory) / name).resolve())
        content = read_small(f"{directory.rstrip('/')}/{name}", storage_options, MAX_INFO_BYTES)
        if content is None:
            raise DataError(f"{directory} has no {name}, which its {INFO_FILE} names; copy it there")
        if cache_directory is None:
            raise DataError(f"{directory} is remote; set data.cache_directory to a directory on this node")
        folder = Path(cache_directory) / blake2b(content, digest_size=8).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, content)
        return str((folder / name).resolve())

    @classmethod
    def load(cls, directory: str | Path) -> "DatasetInfo":
        """Read `dataset.json` from a prepared directory.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = Path(directory) / INFO_FILE
        try:
            return cls._parse(path.read_bytes(), str(path))
        except OSError as error:
            refuse_half_published(Path(directory))
            raise DataError(
                f"cannot read {path}: {error.strerror}; make the data set with nar-scale prepare"
            ) from error

    @classmethod
    def _parse(cls, content: bytes, path: str) -> "DatasetInfo":
        try:
            return _adapter().validate_json(content, strict=True)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(printable(str(part)) for part in fault["loc"])
            reason = f"{where}: {fault['msg']}" if where else fault["msg"]
            raise DataError(f"{path} is damaged ({reason}); restore it, or run nar-scale prepare again") from error

    def save(self, directory: str | Path) -> None:
        """Write `dataset.json`, whole or not at all.

        Raises:
            OSError: the directory cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_atomically(Path(directory) / INFO_FILE, text.encode("utf-8"))


@cache
def _adapter() -> TypeAdapter[DatasetInfo]:
    return TypeAdapter(DatasetInfo)


def check_directory(directory: str) -> None:
    """Raise a DataError if there is no such local directory."""
    if Path(directory).is_file():
        raise DataError(f"data directory {directory} is a file; give the folder that it is in")
    if not Path(directory).is_dir():
        raise DataError(
            f"data directory {directory} does not exist; correct the path, or make it with nar-scale prepare"
        )
