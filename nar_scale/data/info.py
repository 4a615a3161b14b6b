"""What a prepared data set says of itself: `dataset.json`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from nar_scale.errors import DataError
from nar_scale.files import write_atomically

INFO_FILE = "dataset.json"
TOKENS_FIELD = "tokens.npy"
CLASS_FIELD = "cls"


@dataclass(frozen=True)
class SplitInfo:
    """The size of one split.

    Attributes:
        documents: number of documents.
        samples: number of samples; all but the last hold `seq_len` tokens.
        tokens: number of tokens, one end token per document included.
        bytes: size of the source text, 0 if there is none.
        shards: number of tar files.
    """

    documents: int
    samples: int
    tokens: int
    bytes: int
    shards: int

    @property
    def bytes_per_token(self) -> float | None:
        """Length of the text behind a token; None where there is no text."""
        return self.bytes / self.tokens if self.bytes else None


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
        splits: sizes of "train" and, unless none was asked for, "validation".
        skipped: files left out, counted by reason ("hidden", "binary", "empty").
    """

    tokenizer: str | None
    vocabulary_size: int
    end_token: int | None
    seq_len: int
    field: str
    splits: dict[str, SplitInfo]
    skipped: dict[str, int]

    @classmethod
    def load(cls, directory: str | Path) -> "DatasetInfo":
        """Read `dataset.json` from a prepared directory.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = Path(directory) / INFO_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            splits = {name: SplitInfo(**sizes) for name, sizes in content.pop("splits").items()}
            return cls(**content, splits=splits)
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}; make the data set with launcher/prepare.py"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}); run launcher/prepare.py --overwrite again") from error

    def save(self, directory: str | Path) -> None:
        """Write `dataset.json`, whole or not at all.

        Raises:
            OSError: the directory cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_atomically(Path(directory) / INFO_FILE, text.encode("utf-8"))
