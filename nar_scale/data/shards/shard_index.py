"""The index of one shard: a small binary file that says where each field of each sample lies."""

import json
import os
import re
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from nar_scale.data.shards.shard_scan import (
    MAX_FIELDS,
    MAX_KEY_BYTES,
    MISSING,
    TWICE,
    ShardScan,
    ShardStamp,
    scan_shard,
    stamp_shard,
)
from nar_scale.data.storage.remote import is_remote, read_small
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.text import printable
from nar_scale.errors import DataError
from nar_scale.files import write_atomically

INDEX_SUFFIX = ".index"
FORMAT = "nar_scale shard index 3"
MAX_INDEX_BYTES = 1 << 30
MAX_HEADER_BYTES = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ShardIndex:
    """What is known of one shard without reading it.

    The file is one line of JSON, then `count` records: the key, and offset and size of each field.

    Attributes:
        shard: path or URL of the tar file.
        path: the index file.
        stamp: size, mtime and digest of the shard when it was scanned.
        count: number of samples.
        key_bytes: length of the longest key.
        fields: names of the fields, in the order of the records.
        incomplete: samples that lack a field or have it twice, where there are any.
        damage: what is wrong with the shard after these samples; None if it is whole.
        checksum: hex xxh3 of the records; the line has one of its own.
        header_bytes: length of the line.
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

    @property
    def record(self) -> np.dtype:
        """The type of a record: "key" (bytes) and "places" (int64 [fields, 2])."""
        return _record_type(self.key_bytes, len(self.fields))

    def map_table(self) -> np.ndarray:
        """Return the records, memory-mapped: all processes of a node share one copy.

        Raises:
            OSError: the index file went away.
            DataError: the records are not those that were written.
        """
        if self.count == 0:
            return np.empty(0, self.record)
        table = np.memmap(self.path, self.record, "r", self.header_bytes, (self.count,))
        offsets, sizes = table["places"][..., 0], table["places"][..., 1]
        damaged = xxh3_64_hexdigest(table.view(np.uint8).data) != self.checksum
        if damaged or ((offsets < TWICE) | (sizes < 0) | ((offsets >= 0) & (sizes > self.stamp.size - offsets))).any():
            raise DataError(f"index {self.path} is damaged; delete it to rebuild the index")
        return table

    def check_complete(self, field: str) -> None:
        """Make sure that every sample has a field once.

        Raises:
            DataError: naming the first sample that has not.
        """
        if field in self.fields and field not in self.incomplete:
            return
        table = self.map_table()
        column = self.fields.index(field) if field in self.fields else None
        row = 0 if column is None else int(np.argmax(table["places"][:, column, 0] < 0))
        raise DataError(f"{describe_sample(self.shard, table[row])}: {self.explain_absence(table[row], field)}")

    def explain_absence(self, record: np.ndarray, field: str) -> str:
        """Say why a sample has no place for a field."""
        if field in self.fields and record["places"][self.fields.index(field), 0] == TWICE:
            return f"field {field!r} occurs twice; write the shard again"
        present = [name[:80] for name, place in zip(self.fields, record["places"]) if place[0] != MISSING]
        return f"no field {field!r}, only {', '.join(sorted(map(printable, present)))}; name one of these instead"


def describe_sample(shard: str, record: np.ndarray) -> str:
    """Return "shard PATH, sample KEY" for messages."""
    return f"shard {shard}, sample {printable(bytes(record['key']).decode('utf-8', errors='replace'))}"


def index_path(shard: str, index_directory: Path | None) -> Path:
    """Return where the index of a shard is kept: beside it, or in a directory under a name unique to its path."""
    name = Path(shard).name + INDEX_SUFFIX
    if index_directory is None:
        return Path(shard).with_name(name)
    place = shard if is_remote(shard) else str(Path(shard).resolve())
    return index_directory / f"{blake2b(place.encode(), digest_size=8).hexdigest()}-{name}"


def load_shard_index(shard: str, path: Path) -> ShardIndex | None:
    """Read the header of an index file; None if there is none, or one of another format or length.

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


def copy_shard_index(shard: str, path: Path) -> ShardIndex | None:
    """Take the index that lies beside a local shard for one that is kept elsewhere; None if there is none to take."""
    beside = None if is_remote(shard) else index_path(shard, None)
    if beside is None or beside == path or load_shard_index(shard, beside) is None:
        return None
    return _take_index(beside.read_bytes(), shard, path)


def _take_index(content: bytes, shard: str, path: Path) -> ShardIndex | None:
    """Keep the content of an index file that lies elsewhere; None if not all of it is what was written there."""
    end = content.find(b"\n") + 1
    try:
        index = _parse_header(content[:end], len(content), shard, path)
    except ValueError:
        return None  # not an index of ours
    if xxh3_64_hexdigest(content[end:]) != index.checksum:
        return None
    _write_file(path, content)
    return index


def is_unchanged(index: ShardIndex) -> bool:
    """Tell whether a shard still has the size and mtime that were indexed, without reading it.

    A remote shard is compared when it is fetched.

    Raises:
        DataError: the shard went away.
    """
    if is_remote(index.shard):
        return True
    try:
        status = os.stat(index.shard)
    except OSError as error:
        raise DataError(f"cannot read shard {index.shard}: {error.strerror}; restore it or correct its path") from error
    return (status.st_size, status.st_mtime_ns) == (index.stamp.size, index.stamp.mtime_ns)


def make_shard_index(shard: str, path: Path, cache: ShardCache | None = None, allow_damage: bool = False) -> ShardIndex:
    """Read a whole shard, and build its index or check the one there is.

    A new index is written whole or not at all, so doing this twice at once is harmless. A shard whose mtime alone
    differs from its index is accepted, and the mtime noted so that the next look is quick. The index of a remote
    shard is fetched from beside it if there is one.

    Args:
        shard: path or URL.
        path: the index file.
        cache: where remote shards are kept.
        allow_damage: index the samples before the damage instead of raising.

    Raises:
        DataError: the shard changed since it was indexed or is damaged, or the index cannot be written.
    """
    if is_remote(shard):
        return _index_remote(shard, path, cache, allow_damage)
    known = load_shard_index(shard, path)
    stamp = stamp_shard(Path(shard))
    if known is None or (known.damage is not None and stamp.digest != known.stamp.digest):
        return _write(shard, path, stamp, _scan(shard, Path(shard), allow_damage))
    if stamp.size != known.stamp.size:
        raise _changed(known, f"{known.stamp.size} bytes then, {stamp.size} now")
    if stamp.digest != known.stamp.digest:
        raise _changed(known, "same size, other content")
    try:
        return _write(shard, path, stamp, _read_scan(known))
    except DataError:
        return known  # the place of the index is read-only: it is still right, only slower to check


def raise_damage(shard: str, damage: str) -> None:
    """Raise the DataError of a damaged shard."""
    raise DataError(f"shard {shard} {damage}; copy or write it again")


def _scan(shard: str, file: Path, allow_damage: bool) -> ShardScan:
    scan = scan_shard(file)
    if scan.damage is not None and not allow_damage:
        raise_damage(shard, scan.damage)
    return scan


def _index_remote(shard: str, path: Path, cache: ShardCache | None, allow_damage: bool) -> ShardIndex:
    if cache is None:
        raise DataError(
            f"shard {shard} is remote; give --cache-directory or data.cache_directory, a directory on this node"
        )
    sidecar = read_small(shard + INDEX_SUFFIX, cache.storage_options, MAX_INDEX_BYTES)
    index = None if sidecar is None else _take_index(sidecar, shard, path)
    if index is not None:
        return index
    copy = cache.open(shard)
    try:
        return _write(shard, path, stamp_shard(Path(copy.path)), _scan(shard, Path(copy.path), allow_damage))
    finally:
        copy.close()


def _changed(index: ShardIndex, reason: str) -> DataError:
    return DataError(
        f"shard {index.shard} changed since its index was built ({reason}); "
        f"restore it, or delete {index.path} to rebuild the index"
    )


def _read_scan(index: ShardIndex) -> ShardScan:
    table = index.map_table()
    return ShardScan(table["key"], index.fields, table["places"], index.damage)


def _write(shard: str, path: Path, stamp: ShardStamp, scan: ShardScan) -> ShardIndex:
    lacking = (scan.places[:, :, 0] < 0).sum(axis=0)
    header: dict[str, Any] = {
        "format": FORMAT,
        "stamp": asdict(stamp),
        "count": len(scan.keys),
        "key_bytes": scan.keys.dtype.itemsize,
        "fields": scan.fields,
        "incomplete": {field: int(number) for field, number in zip(scan.fields, lacking) if number},
        "damage": scan.damage,
    }
    table = np.empty(len(scan.keys), _record_type(scan.keys.dtype.itemsize, len(scan.fields)))
    table["key"], table["places"] = scan.keys, scan.places
    records = table.tobytes()
    header["checksum"] = xxh3_64_hexdigest(records)
    line = json.dumps({**header, "seal": _seal(header)}).encode() + b"\n"
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
        if header.pop("seal") != _seal(header) or header.pop("format") != FORMAT:
            raise ValueError(f"the format is not {FORMAT!r}, or the line is damaged")
        stamp, fields = ShardStamp(**header.pop("stamp")), header.pop("fields")
        if not isinstance(fields, list):
            raise ValueError("fields is no list")
        index = ShardIndex(shard=shard, path=path, stamp=stamp, fields=tuple(fields), header_bytes=len(line), **header)
        if not _is_sound(index) or file_bytes != len(line) + index.count * index.record.itemsize:
            raise ValueError("a value or its length is wrong")
        return index
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"no index header: {error}") from error


def _seal(header: dict[str, Any]) -> str:
    return xxh3_64_hexdigest(json.dumps(header).encode())


def _is_sound(index: ShardIndex) -> bool:
    """Whether the values of a header are of the types and sizes that `_write` gives them."""
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


def _record_type(key_bytes: int, fields: int) -> np.dtype:
    return np.dtype([("key", f"S{key_bytes}"), ("places", "<i8", (fields, 2))])
