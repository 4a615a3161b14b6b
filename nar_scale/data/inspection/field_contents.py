"""Describing what the fields of samples hold: their sizes, the arrays and classes in them, and the content of one."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD
from nar_scale.data.formats.npy import decode_npy
from nar_scale.data.tokenizers import Tokenizer

SHOWN_NUMBERS = 32
SHOWN_LETTERS = 500
SHOWN_JSON_LETTERS = 2000
MAX_GRID_SIDE = 32
MAX_DTYPES = 4
PICKLES = ("pickle", "pkl", "pyd", "pth", "pt")


@dataclass
class FieldSizes:
    """In which samples a field occurs, and how large it is there.

    Attributes:
        samples: number of samples that have the field once.
        duplicates: number of samples that have it twice.
        total: bytes of it in all samples that have it once.
        least: bytes in the smallest of these; None if there is none.
        most: bytes in the largest.
    """

    samples: int = 0
    duplicates: int = 0
    total: int = 0
    least: int | None = None
    most: int = 0

    def add(self, spans: np.ndarray) -> None:
        """Count the field in the samples of a shard; `spans` is int64 `[samples, 2]` as in `ShardScan`."""
        offsets, sizes = spans[:, 0], spans[spans[:, 0] >= 0, 1]
        self.duplicates += int((offsets < -1).sum())
        if len(sizes):
            self.samples += len(sizes)
            self.total += int(sizes.sum())
            self.least = int(sizes.min()) if self.least is None else min(self.least, int(sizes.min()))
            self.most = max(self.most, int(sizes.max()))


@dataclass
class ArrayStatistics:
    """What the arrays of a field look like.

    Attributes:
        dtypes: how often each occurs.
        shapes: all that occur.
        lengths: of the one-dimensional arrays.
        low: the smallest finite number; None if there is none.
        high: the largest.
        faults: why arrays could not be read, one line each.
    """

    dtypes: Counter[str] = field(default_factory=Counter)
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    lengths: list[int] = field(default_factory=list)
    low: float | int | None = None
    high: float | int | None = None
    faults: list[str] = field(default_factory=list)

    def add(self, array: np.ndarray) -> None:
        """Count an array of any dtype and shape."""
        self.dtypes[_dtype_name(array)] += 1
        self.shapes.add(array.shape)
        if array.ndim == 1:
            self.lengths.append(len(array))
        if array.dtype.kind == "f":
            array = array[np.isfinite(array)]
        if array.dtype.kind in "biuf" and array.size:
            low, high = array.min().item(), array.max().item()
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)

    def describe(self) -> Iterator[str]:
        """Yield lines for a report."""
        if self.dtypes:
            names = [name for name, _ in self.dtypes.most_common()]
            dtypes = " or ".join(names[:MAX_DTYPES]) + (" or ..." if len(names) > MAX_DTYPES else "")
            values = "" if self.low is None else f", values {_number(self.low)} to {_number(self.high)}"
            yield f"{dtypes} {self._describe_shapes()}{values}"
        if len(self.lengths) == sum(self.dtypes.values()) and max(self.lengths, default=1) > 1:
            yield f"lengths {min(self.lengths):,} to {max(self.lengths):,}, median {median(self.lengths):,.10g}"
        if self.faults:
            yield f"{len(self.faults):,} cannot be read, the first because {self.faults[0]}"

    def _describe_shapes(self) -> str:
        texts = []
        for dimensions in sorted({len(shape) for shape in self.shapes}):
            axes = zip(*[shape for shape in self.shapes if len(shape) == dimensions])
            ranges = [f"{min(axis)}" if min(axis) == max(axis) else f"{min(axis)}..{max(axis)}" for axis in axes]
            texts.append(f"[{', '.join(ranges)}]")
        return " or ".join(texts)


class SampleView:
    """Shows the content of the fields of a sample in a few lines each. Nothing is unpickled.

    Args:
        tokens_field: the field that holds the tokens.
        documents_field: the field that holds the document of each token.
        tokenizer: decodes the tokens; None to show numbers only.
        may_be_images: show square numbers of tokens as a grid.
    """

    def __init__(self, tokens_field: str, documents_field: str, tokenizer: Tokenizer | None, may_be_images: bool):
        self._tokens_field, self._documents_field = tokens_field, documents_field
        self._tokenizer, self._may_be_images = tokenizer, may_be_images

    def lines(self, name: str, content: bytes) -> list[str]:
        """Return a line about a field, which may be empty, and more lines for below it.

        Raises:
            ValueError: the content is not what the name of the field says.
        """
        kind = name.rpartition(".")[2].lower()
        if is_array(name):
            return list(self._array_lines(name, decode_npy(content)))
        size = plural(len(content), "byte")
        if kind in PICKLES:
            return [f"{size}, not opened: what is pickled can run commands"]
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return [size]
        if "\0" in text:
            return [size]
        letters = SHOWN_LETTERS
        if kind == "json":
            text, letters = json.dumps(json.loads(text), indent=2, ensure_ascii=False), SHOWN_JSON_LETTERS
        lines = shorten(text, letters).rstrip("\n").split("\n")
        return lines if len(lines) == 1 else ["", *lines]

    def _array_lines(self, name: str, array: np.ndarray) -> Iterator[str]:
        yield f"{_dtype_name(array)} [{', '.join(map(str, array.shape))}]"
        is_tokens = name == self._tokens_field and array.ndim == 1 and array.dtype.kind in "iu"
        if name == self._documents_field:
            yield plural(len(np.unique(array)), "document")
        side = int(len(array) ** 0.5) if is_tokens and self._may_be_images else 0
        if 1 < side <= MAX_GRID_SIDE and side * side == len(array):
            width = max(len(str(token)) for token in array.tolist())
            for row in array.reshape(side, side).tolist():
                yield " ".join(f"{token:>{width}}" for token in row)
            return
        more = f" ... {array.size - SHOWN_NUMBERS:,} more" if array.size > SHOWN_NUMBERS else ""
        yield shorten(" ".join(map(_number, array.flat[:SHOWN_NUMBERS].tolist())), SHOWN_LETTERS) + more
        if is_tokens and self._tokenizer is not None:
            # a few tokens, such as bytes, may make one letter
            text = self._tokenizer.decode(array[: 4 * SHOWN_LETTERS].tolist())
            yield from shorten(text, SHOWN_LETTERS).split("\n")


def is_array(name: str) -> bool:
    """Return whether a field holds an array by its name."""
    return name.rpartition(".")[2].lower() == "npy"


def is_class(name: str) -> bool:
    """Return whether a field holds a class by its name."""
    return name.rpartition(".")[2] == CLASS_FIELD


def plural(number: int, name: str) -> str:
    """Return a number with its noun, such as "1 shard" or "1,234 shards"."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def shorten(text: str, letters: int) -> str:
    """Return the first `letters` letters of a text, and dots if there are more."""
    return text if len(text) <= letters else f"{text[:letters]} ..."


def _dtype_name(array: np.ndarray) -> str:
    return str(array.dtype)[:80]


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
