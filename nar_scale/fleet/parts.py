"""Finished units as files: their names, their formats, and what shows that one is whole."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nar_scale.errors import DataError

JSONL, SHARDS = "jsonl", "shards"
FORMATS = {JSONL: ".jsonl", SHARDS: ".tar"}
"""Suffixes of the files of each format: a JSON object a line, or WebDataset samples with `json`, `txt` and `cls`."""
_TAR_END_BYTES = 2 * tarfile.BLOCKSIZE
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Layout:
    """How results are cut into units, each of which becomes a part.

    Attributes:
        count: number of results.
        part_size: results in a part; the last has fewer.
        format: of the parts, one of `FORMATS`.
    """

    count: int
    part_size: int
    format: str = JSONL

    @property
    def units(self) -> int:
        """Number of units."""
        return -(-self.count // self.part_size)

    def numbers(self, unit: int) -> range:
        """The numbers of the results in a unit."""
        return range(unit * self.part_size, min((unit + 1) * self.part_size, self.count))

    def part_name(self, unit: int) -> str:
        """The file of a finished unit."""
        return f"part-{unit:05d}{FORMATS[self.format]}"

    def unit_of(self, name: str) -> int | None:
        """The unit whose part has this name; None for any other file."""
        match = _PART.fullmatch(name)
        if match is None or match[2] != FORMATS[self.format]:
            return None
        unit = int(match[1])
        return unit if unit < self.units and name == self.part_name(unit) else None


_PART = re.compile(r"part-(\d{5,})(\.\w+)")


def encode_part(layout: Layout, lines: Sequence[bytes]) -> bytes:
    """The content of a part, the same for the same results.

    Args:
        layout: whose format is used.
        lines: a JSON object for each result, in order, without line feeds.
    """
    if layout.format == JSONL:
        return b"".join(line + b"\n" for line in lines)
    content = io.BytesIO()
    write_samples(content, lines)
    return content.getvalue()


def write_samples(file: Any, lines: Sequence[bytes]) -> None:
    """Write a WebDataset shard: `NUMBER.json` for each result, `NUMBER.txt` for a text, `NUMBER.cls` for a class.

    Args:
        file: opened for writing in binary mode.
        lines: the results as JSON.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for line in lines:
            result = json.loads(line)
            members = {"json": line}
            if "generated" in result:
                members["txt"] = result["generated"].encode()
            if "class" in result:
                members["cls"] = str(result["class"]).encode()
            for field, content in members.items():
                header = tarfile.TarInfo(f"{result['number']:09d}.{field}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def read_part(path: Path, numbers: Sequence[int] | None = None) -> list[bytes]:
    """The results of a part as JSON, in order.

    Args:
        path: of the part.
        numbers: what it must hold; None for anything.

    Raises:
        DataError: it cannot be read, is truncated, or holds other results.
    """
    try:
        content = path.read_bytes()
        lines = _LINES[path.suffix](content)
        found = [json.loads(line)["number"] for line in lines]
    except OSError as error:
        raise DataError(f"cannot read the part {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, tarfile.TarError, EOFError):
        raise damaged(path) from None
    if numbers is not None and found != list(numbers):
        raise damaged(path)
    return lines


def damaged(path: Path) -> DataError:
    """The error for a part that is not what was written."""
    return DataError(
        f"the part {path} is truncated or damaged; remove it, and start a worker, which makes it again, byte for byte"
    )


def seems_whole(path: Path, numbers: range) -> bool:
    """Whether the end of a part is there; cheaper than `read_part`, which finds any damage.

    Args:
        path: of the part.
        numbers: of its results.
    """
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        if path.suffix == FORMATS[SHARDS]:
            file.seek(max(0, size - _TAR_END_BYTES))
            return size > 0 and size % tarfile.RECORDSIZE == 0 and not file.read().strip(b"\0")
        tail_bytes = _TAIL_BYTES
        while True:
            file.seek(max(0, size - tail_bytes))
            tail = file.read()
            if tail.count(b"\n") > 1 or tail_bytes >= size:
                break
            tail_bytes *= 8
    try:
        return tail.endswith(b"\n") and json.loads(tail[:-1].rsplit(b"\n", 1)[-1])["number"] == numbers[-1]
    except (ValueError, KeyError, TypeError):
        return False


def _read_lines(content: bytes) -> list[bytes]:
    if not content.endswith(b"\n"):
        raise ValueError("no line feed at the end")
    return content[:-1].split(b"\n")


def _read_shard(content: bytes) -> list[bytes]:
    if not content or len(content) % tarfile.RECORDSIZE or content[-_TAR_END_BYTES:].strip(b"\0"):
        raise ValueError("no end")
    return list(_json_members(content))


def _json_members(content: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".json") else None
            if file is not None:
                yield file.read()


_LINES: dict[str, Callable[[bytes], list[bytes]]] = {".jsonl": _read_lines, ".tar": _read_shard}
