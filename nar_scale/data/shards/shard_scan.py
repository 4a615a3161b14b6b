"""Finding the samples of one tar shard by its headers, and where they end if the shard is damaged."""

import os
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.data.formats.tar import MEMBER_NAME, DamagedTarError, TarMember, tar_members
from nar_scale.errors import DataError

READ_BYTES = 1 << 20
MAX_FIELDS = 64
MAX_FIELD_LETTERS = 255
MAX_KEY_BYTES = 256  # keys are used in messages only; longer ones are cut
MISSING, DUPLICATE = -1, -2  # in place of the offset of a field


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
        spans: int64 `[samples, fields, 2]`, offset and size in bytes; the offset is `MISSING` or `DUPLICATE` where a
            sample does not have a field exactly once.
        damage: what is wrong with the shard after these samples, as the predicate of a sentence; None if it is whole.
    """

    keys: np.ndarray
    fields: tuple[str, ...]
    spans: np.ndarray
    damage: str | None


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
    """Read the headers of a shard; nothing is extracted, and names are not used as paths.

    Raises:
        DataError: the shard cannot be read, or has more than 64 fields or one with a name of more than 255 letters.
    """
    table = _MemberTable()
    damage = None
    try:
        with open(shard, "rb") as file:
            try:
                for member in tar_members(file, os.fstat(file.fileno()).st_size):
                    if not table.add(member):
                        raise DataError(
                            f"shard {shard} has more than {MAX_FIELDS} fields or one of more than {MAX_FIELD_LETTERS} "
                            f"letters, such as {member.name[:80]!r}; is it a WebDataset shard?"
                        )
            except DamagedTarError as error:
                damage = error.description
    except OSError as error:
        raise DataError(f"cannot read shard {shard}: {error.strerror}; restore it or correct its path") from error
    return table.to_scan(damage)


class _MemberTable:
    """The members found so far, in a few bytes each."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.fields: dict[str, int] = {}
        self._rows, self._columns, self._offsets, self._sizes = array("q"), array("q"), array("q"), array("q")
        self._key: str | None = None
        self._sample: dict[str, int] = {}  # the entry of each field of the latest sample

    def add(self, member: TarMember) -> bool:
        """Enter a member; return False if there are too many fields or its name is too long."""
        name = MEMBER_NAME.fullmatch(member.name)
        if name is None:
            return True
        key, field = name.groups()
        if len(field) > MAX_FIELD_LETTERS or (len(self.fields) == MAX_FIELDS and field not in self.fields):
            return False
        if key != self._key:
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
        return True

    def to_scan(self, damage: str | None) -> ShardScan:
        spans = np.zeros((len(self.keys), len(self.fields), 2), dtype=np.int64)
        spans[:, :, 0] = MISSING
        spans[self._rows, self._columns, 0] = self._offsets
        spans[self._rows, self._columns, 1] = self._sizes
        keys = np.array(self.keys, dtype=f"S{max(map(len, self.keys), default=1)}")
        return ShardScan(keys, tuple(self.fields), spans, damage)
