"""Finding the samples of one tar shard, and telling a whole shard from a damaged one."""

import re
import tarfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.errors import DataError

# WebDataset's rule: the key is the path up to the first dot of the file name, the field is what follows.
MEMBER_NAME = re.compile(r"^((?:.*/|)[^.]+)\.([^/]*)$")
BLOCK_BYTES = 512
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardStamp:
    """What identifies the content of a shard: size in bytes, mtime in ns, hex digest of all bytes."""

    size: int
    mtime_ns: int
    digest: str


def stamp_shard(shard: Path) -> ShardStamp:
    """Read the whole shard and return its stamp.

    Raises:
        DataError: it cannot be read, or it is being written to.
    """
    try:
        before = shard.stat()
        hasher = blake2b(digest_size=16)
        with open(shard, "rb") as file:
            while block := file.read(READ_BYTES):
                hasher.update(block)
        after = shard.stat()
    except OSError as error:
        raise DataError(f"cannot read shard {shard}: {error.strerror}; restore it or correct its path") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"shard {shard} is being written to; wait until it is complete")
    return ShardStamp(after.st_size, after.st_mtime_ns, hasher.hexdigest())


def scan_shard(shard: Path, field: str) -> np.ndarray:
    """Find the wanted field of every sample of a shard.

    Args:
        shard: an uncompressed tar in the WebDataset layout.
        field: what follows the first dot in the member's name, such as "tokens.npy".

    Returns:
        A structured array [samples]: "key" (bytes), "offset" and "size" (int64, bytes) of the member's data.

    Raises:
        DataError: the shard cannot be read, is truncated or damaged, or a sample lacks the field or has it twice.
    """
    keys: list[bytes] = []
    places: list[tuple[int, int]] = []
    sample_key: str | None = None
    sample_fields: list[str] = []
    end = 0
    try:
        with tarfile.open(shard, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member it has seen
                end = member.offset_data
                name = MEMBER_NAME.match(member.name)
                if not member.isreg():
                    continue
                end += -(-member.size // BLOCK_BYTES) * BLOCK_BYTES
                if name is None:
                    continue
                if name[1] != sample_key:
                    _check_fields(shard, sample_key, sample_fields, field)
                    sample_key, sample_fields = name[1], []
                sample_fields.append(name[2])
                if name[2] == field:
                    keys.append(name[1].encode("utf-8", errors="surrogateescape"))
                    places.append((member.offset_data, member.size))
        _check_fields(shard, sample_key, sample_fields, field)
        _check_end(shard, end)
    except tarfile.TarError as error:
        raise DataError(
            f"shard {shard} is truncated, damaged or not an uncompressed tar ({error}); copy it again"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read shard {shard}: {error.strerror}; restore it or correct its path") from error
    table = np.empty(len(keys), dtype=[("key", f"S{max(map(len, keys), default=1)}"), ("offset", "i8"), ("size", "i8")])
    table["key"] = keys
    table["offset"], table["size"] = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return table


def _check_fields(shard: Path, key: str | None, fields: list[str], field: str) -> None:
    if key is None:
        return
    if field not in fields:
        present = ", ".join(sorted(fields))
        raise DataError(f"shard {shard}, sample {key}: no field {field!r}, only {present}; name one of these instead")
    if fields.count(field) > 1:
        raise DataError(f"shard {shard}, sample {key}: field {field!r} occurs twice; write the shard again")


def _check_end(shard: Path, end: int) -> None:
    # tarfile takes a cut or damaged header for the end of the archive; a whole archive ends in a block of zeros.
    size = shard.stat().st_size
    with open(shard, "rb") as file:
        file.seek(end)
        block = file.read(BLOCK_BYTES)
    if end > size or len(block) < BLOCK_BYTES:
        raise DataError(f"shard {shard} is truncated at byte {size}; copy or write it again")
    if block.strip(b"\0"):
        raise DataError(f"shard {shard} is damaged at byte {end}; copy or write it again")
