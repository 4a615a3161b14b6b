"""The index file of one shard: one line of JSON, then a binary record for each sample.

The line says what the shard was when it was scanned; a record is the key of a sample, and offset, size in bytes and
checksum of each of its fields. Line and records each have an xxh3 checksum (Collet, https://xxhash.com).

Format 3 had no checksums of fields, and names of fields as they are in the shard. Such an index is still read where it
says what it would say today.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from nar_scale.data.shards.shard_scan import DUPLICATE, MAX_FIELDS, MAX_KEY_BYTES, MISSING, ShardScan, ShardStamp
from nar_scale.errors import DataError
from nar_scale.files import write_atomically
from nar_scale.text import printable

FORMAT, EARLIER_FORMAT = "nar_scale shard index 4", "nar_scale shard index 3"
MAX_HEADER_BYTES = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ShardIndex:
    """What the index file of a shard says.

    Attributes:
        shard: path or URL of the tar file.
        path: the index file.
        stamp: size, mtime and digest of the shard when it was scanned.
        count: number of samples.
        key_bytes: length of the longest key in bytes.
        fields: names of the fields, in the order of the records.
        incomplete: for each field that some samples do not have exactly once, the number of these samples.
        damage: what is wrong with the shard after these samples, as the predicate of a sentence; None if it is whole.
        checksum: xxh3 of the records in hexadecimal digits.
        header_bytes: length of the line in bytes.
        has_checksums: whether the records have a checksum of each field.
    """

    shard: str
    path: Path
    stamp: ShardStamp
    count: int
    key_bytes: int
    fields: tuple[str, ...]
    incomplete: dict[str, int]
    damage: str | None
    checksum: str
    header_bytes: int
    has_checksums: bool = True

    @property
    def record(self) -> np.dtype:
        """The dtype of a record: "key" (bytes) and "spans" (int64 `[fields, 3]` as in `ShardScan`, or without checksums
        `[fields, 2]`).
        """
        return _record_type(self.key_bytes, len(self.fields), 3 if self.has_checksums else 2)

    def map_table(self) -> np.ndarray:
        """Return the records `[count]`, memory-mapped: all processes of a node share one copy.

        Raises:
            OSError: the index file was removed.
            DataError: the records are not those that were written.
        """
        if self.count == 0:
            return np.empty(0, self.record)
        table = np.memmap(self.path, self.record, "r", self.header_bytes, (self.count,))
        offsets, sizes = table["spans"][..., 0], table["spans"][..., 1]
        damaged = xxh3_64_hexdigest(table.view(np.uint8).data) != self.checksum
        out_of_range = (offsets < DUPLICATE) | (sizes < 0) | ((offsets >= 0) & (sizes > self.stamp.size - offsets))
        if damaged or out_of_range.any():
            raise DataError(f"index {self.path} is damaged; delete it to rebuild the index")
        return table

    def check_complete(self, field: str) -> None:
        """Check that every sample has a field exactly once.

        Raises:
            DataError: naming the first sample that does not.
        """
        field = field.lower()
        if field in self.fields and field not in self.incomplete:
            return
        table = self.map_table()
        column = self.fields.index(field) if field in self.fields else None
        row = 0 if column is None else int(np.argmax(table["spans"][:, column, 0] < 0))
        raise DataError(f"{describe_sample(self.shard, table[row])}: {self.explain_absence(table[row], field)}")

    def explain_absence(self, record: np.ndarray, field: str) -> str:
        """Return why a sample has no single value of a field, for a message."""
        if field in self.fields and record["spans"][self.fields.index(field), 0] == DUPLICATE:
            return f"field {field!r} occurs twice; write the shard again"
        present = [name[:80] for name, span in zip(self.fields, record["spans"]) if span[0] != MISSING]
        return f"no field {field!r}, only {', '.join(sorted(map(printable, present)))}; name one of these instead"


def describe_sample(shard: str, record: np.ndarray) -> str:
    """Return "shard PATH, sample KEY" for messages."""
    return f"shard {printable(shard)}, sample {printable(bytes(record['key']).decode('utf-8', errors='replace'))}"


def load_shard_index(shard: str, path: Path) -> ShardIndex | None:
    """Read the header of an index file; return None if there is none, or one of another format or length.

    Args:
        shard: path or URL of the shard.
        path: the index file.

    Raises:
        DataError: the file exists but cannot be read.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline(MAX_HEADER_BYTES)
            file_bytes = os.fstat(file.fileno()).st_size
        return _parse_header(line, file_bytes, shard, path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None  # none, or not an index of ours: it is made again
    except OSError as error:
        raise DataError(f"cannot read index {path}: {error.strerror}; make it readable or delete it") from error


def copy_index_file(content: bytes, shard: str, path: Path) -> ShardIndex | None:
    """Write the content of an index file that was read elsewhere to `path`; None if it is not what was written there.

    Raises:
        DataError: the file cannot be written.
    """
    end = content.find(b"\n") + 1
    try:
        index = _parse_header(content[:end], len(content), shard, path)
    except ValueError:
        return None  # not an index of ours
    if xxh3_64_hexdigest(content[end:]) != index.checksum:
        return None
    _write_file(path, content)
    return index


def write_shard_index(shard: str, path: Path, stamp: ShardStamp, scan: ShardScan) -> ShardIndex:
    """Write an index file, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    lacking = (scan.spans[:, :, 0] < 0).sum(axis=0)
    header: dict[str, Any] = {
        "format": FORMAT,
        "stamp": asdict(stamp),
        "count": len(scan.keys),
        "key_bytes": scan.keys.dtype.itemsize,
        "fields": scan.fields,
        "incomplete": {field: int(number) for field, number in zip(scan.fields, lacking) if number},
        "damage": scan.damage,
    }
    table = np.empty(len(scan.keys), _record_type(scan.keys.dtype.itemsize, *scan.spans.shape[1:]))
    table["key"], table["spans"] = scan.keys, scan.spans
    records = table.tobytes()
    header["checksum"] = xxh3_64_hexdigest(records)
    line = json.dumps({**header, "seal": _header_checksum(header)}).encode() + b"\n"
    content = line + records
    _write_file(path, content)
    return _parse_header(line, len(content), shard, path)


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise DataError(
            f"cannot write index {path}: {error.strerror}; set data.index_directory (or --index-directory) elsewhere"
        ) from error


def _parse_header(line: bytes, file_bytes: int, shard: str, path: Path) -> ShardIndex:
    try:
        header = json.loads(line)
        seal, index_format = header.pop("seal"), header["format"]
        if seal != _header_checksum(header) or header.pop("format") not in (FORMAT, EARLIER_FORMAT):
            raise ValueError(f"the format is not {FORMAT!r}, or the line is damaged")
        if index_format == EARLIER_FORMAT and not _is_as_today(header):
            raise ValueError(f"a shard with such fields is described differently in {FORMAT!r}")
        stamp, fields = ShardStamp(**header.pop("stamp")), header.pop("fields")
        if not isinstance(fields, list):
            raise ValueError("fields is no list")
        index = ShardIndex(
            shard=shard,
            path=path,
            stamp=stamp,
            fields=tuple(fields),
            header_bytes=len(line),
            has_checksums=index_format == FORMAT,
            **header,
        )
        if not _is_valid(index) or file_bytes != len(line) + index.count * index.record.itemsize:
            raise ValueError("a value or its length is wrong")
        return index
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"no index header: {error}") from error


def _is_as_today(header: dict[str, Any]) -> bool:
    """Return whether an index of the earlier format has nothing that is named, left out or refused since then."""
    return not header["incomplete"] and all(field == field.lower() for field in header["fields"])


def _header_checksum(header: dict[str, Any]) -> str:
    return xxh3_64_hexdigest(json.dumps(header).encode())


def _is_valid(index: ShardIndex) -> bool:
    """Return whether the values of a header are of the types and sizes that `write_shard_index` gives them."""
    stamp, numbers = index.stamp, (index.count, index.key_bytes, index.stamp.size, index.stamp.mtime_ns)
    return (
        all(type(number) is int for number in (*numbers, *index.incomplete.values()))
        and index.count >= 0
        and 1 <= index.key_bytes <= MAX_KEY_BYTES
        and 0 <= stamp.size < 2**63
        and bool(DIGEST.fullmatch(stamp.digest))
        and all(isinstance(field, str) for field in index.fields)
        and len(set(index.fields)) == len(index.fields) <= MAX_FIELDS
        and index.incomplete.keys() <= set(index.fields)
        and (index.damage is None or (isinstance(index.damage, str) and index.damage.isprintable()))
    )


def _record_type(key_bytes: int, fields: int, numbers: int) -> np.dtype:
    return np.dtype([("key", f"S{key_bytes}"), ("spans", "<i8", (fields, numbers))])
