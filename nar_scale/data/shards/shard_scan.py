"""Finding the samples of one tar shard by its headers, and where they end if the shard is damaged."""

import os
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from nar_scale.data.formats.tar import (
    DamagedTarError,
    SplitSampleCheck,
    SplitSampleError,
    TarMember,
    sample_member,
    tar_members,
)
from nar_scale.errors import DataError

READ_BYTES = 1 << 20
MAX_FIELDS = 64
MAX_FIELD_LETTERS = 255
MAX_KEY_BYTES = 256  # keys are used in messages only; longer ones are cut
MISSING, DUPLICATE = -1, -2  # in place of the offset of a field
CHECKSUM_BITS = (1 << 63) - 1  # of the 64 of xxh3, so that it fits into an int64 that is not negative


@dataclass(frozen=True)
class ShardStamp:
    """What identifies the content of a shard.

    Attributes:
        size: bytes.
        mtime_ns: time of the last modification, in nanoseconds.
        digest: blake2b of 16 bytes over all bytes of the shard, in hexadecimal digits.
    """

    size: int
    mtime_ns: int
    digest: str


@dataclass(frozen=True)
class ShardScan:
    """Where the samples of a shard lie.

    Attributes:
        keys: bytes `[samples]`, at most 256 bytes each.
        fields: all fields that occur.
        spans: int64 `[samples, fields, 3]`, offset and size in bytes and `content_checksum`; the offset is `MISSING` or
            `DUPLICATE` where a sample does not have a field exactly once.
        damage: what is wrong with the shard after these samples, as the predicate of a sentence; None if it is whole.
    """

    keys: np.ndarray
    fields: tuple[str, ...]
    spans: np.ndarray
    damage: str | None


def content_checksum(content: bytes) -> int:
    """Return the checksum of a field of a sample: 63 bits of xxh3 (Collet, https://xxhash.com)."""
    return xxh3_64_intdigest(content) & CHECKSUM_BITS


def stamp_shard(shard: Path) -> ShardStamp:
    """Read a whole shard and return its stamp.

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


def scan_shard(shard: Path) -> ShardScan:
    """Find the samples of a shard; nothing is extracted, and names are not used as paths.

    Raises:
        DataError: the shard cannot be read, has more than 64 fields or one with a name of more than 255 letters, or the
            members of a sample are not adjacent.
    """
    table = _MemberTable()
    damage = None
    try:
        with open(shard, "rb") as file:
            try:
                for member in tar_members(file, os.fstat(file.fileno()).st_size):
                    if not table.add(member, file):
                        raise DataError(
                            f"shard {shard} has more than {MAX_FIELDS} fields or one of more than {MAX_FIELD_LETTERS} "
                            f"letters, such as {member.name[:80]!r}; is it a WebDataset shard?"
                        )
                table.finish_sample()
            except DamagedTarError as error:
                damage = error.description
            except SplitSampleError as error:
                raise DataError(f"shard {shard} {error}") from None
    except OSError as error:
        raise DataError(f"cannot read shard {shard}: {error.strerror}; restore it or correct its path") from error
    return table.to_scan(damage)


class _MemberTable:
    """The members found so far, in a few bytes each."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.fields: dict[str, int] = {}
        self._rows, self._columns = array("q"), array("q")
        self._offsets, self._sizes, self._checksums = array("q"), array("q"), array("q")
        self._check = SplitSampleCheck()
        self._key: str | None = None
        self._sample: dict[str, int] = {}  # the entry of each field of the latest sample

    def add(self, member: TarMember, file: BinaryIO) -> bool:
        """Enter a member of an open tar; return False if there are too many fields or its name is too long.

        Raises:
            SplitSampleError: the sample before it is the rest of an earlier one.
        """
        name = sample_member(member.name)
        if name is None:
            return True
        key, field = name
        if len(field) > MAX_FIELD_LETTERS or (len(self.fields) == MAX_FIELDS and field not in self.fields):
            return False
        if key != self._key:
            self.finish_sample()
            self.keys.append(key[:MAX_KEY_BYTES].encode("utf-8", errors="surrogateescape")[:MAX_KEY_BYTES])
            self._key, self._sample = key, {}
        if field in self._sample:
            self._offsets[self._sample[field]], self._sizes[self._sample[field]] = DUPLICATE, 0
            return True
        self._sample[field] = len(self._rows)
        self._rows.append(len(self.keys) - 1)
        self._columns.append(self.fields.setdefault(field, len(self.fields)))
        self._offsets.append(member.offset)
        self._sizes.append(member.size)
        self._checksums.append(_member_checksum(file, member))
        return True

    def finish_sample(self) -> None:
        """Check the latest sample, to which no more members are added."""
        if self._key is not None:
            self._check.add(self._key, self._sample)

    def to_scan(self, damage: str | None) -> ShardScan:
        spans = np.zeros((len(self.keys), len(self.fields), 3), dtype=np.int64)
        spans[:, :, 0] = MISSING
        spans[self._rows, self._columns, 0] = self._offsets
        spans[self._rows, self._columns, 1] = self._sizes
        spans[self._rows, self._columns, 2] = self._checksums
        keys = np.array(self.keys, dtype=f"S{max(map(len, self.keys), default=1)}")
        return ShardScan(keys, tuple(self.fields), spans, damage)


def _member_checksum(file: BinaryIO, member: TarMember) -> int:
    file.seek(member.offset)
    if member.size <= READ_BYTES:
        return content_checksum(file.read(member.size))
    hasher, left = xxh3_64(), member.size
    while left and (block := file.read(min(left, READ_BYTES))):
        hasher.update(block)
        left -= len(block)
    return hasher.intdigest() & CHECKSUM_BITS
