"""Finding the files in a tar by reading only its headers.

Tars come from untrusted sources, and tarfile of the standard library trusts them: a negative size makes it loop
forever, and a header of a megabyte can make it allocate memory without limit. Here no header costs more than its own
length. Formats: POSIX ustar and pax (IEEE Std 1003.1), and GNU tar's long names and large sizes.

`sample_member` says which sample a member belongs to, for every way of reading shards.
"""

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 512
END = bytes(BLOCK_BYTES)
MAX_PADDING_BYTES = 1 << 20  # writers fill up their last record, of 10 KiB as a rule
MAX_KEY_LETTERS = 256  # in messages
MEBIBYTE, MAX_RECORD_MEBIBYTES = 1 << 20, 16
MAX_EXTENDED_BYTES = 1 << 20  # of a header that holds a long name or attributes
OCTAL = re.compile(rb"[0-7]{1,12}")
DECIMAL = re.compile(rb"[0-9]{1,18}")
REGULAR, SPARSE, LONG_NAME, LONG_LINK = (b"0", b"\0", b"7"), b"S", b"L", b"K"
DIRECTORY = b"5"
WITHOUT_CONTENT = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    DIRECTORY: "directory",
    b"6": "pipe",
}
PAX, GLOBAL_PAX = (b"x", b"X"), b"g"


class DamagedTarError(Exception):
    """A tar that is truncated or damaged. The message is the reason.

    Attributes:
        description: what is wrong as the predicate of a sentence about the file, such as "is damaged at byte 2048".
    """

    def __init__(self, reason: str, description: str | None = None):
        super().__init__(reason)
        self.description = description or f"is truncated, damaged or not an uncompressed tar ({reason})"


class TarMember(NamedTuple):
    """A regular file in a tar.

    Attributes:
        name: as it is stored; it must not be used as a path.
        offset: byte at which the content begins.
        size: bytes of content.
        end: byte at which the next header begins.
    """

    name: str
    offset: int
    size: int
    end: int


class LostMember(NamedTuple):
    """A member of a tar that is not read, as it has no content of its own or is of an unknown kind.

    Attributes:
        kind: such as "hard link".
        name: as it is stored.
    """

    kind: str
    name: str


def tar_members(file: BinaryIO, file_bytes: int, lost: list[LostMember] | None = None) -> Iterator[TarMember]:
    """Yield the regular files of a tar one by one; the position of `file` may be changed in between.

    Args:
        file: the open tar.
        file_bytes: its size in bytes.
        lost: where to enter members that are neither regular files nor directories.

    Raises:
        DamagedTarError: after the last whole member, if the end of the archive does not follow it.
        OSError: the file cannot be read.
    """
    start, global_attributes = 0, dict[bytes, bytes]()
    while True:
        position, attributes, long_name = start, dict[bytes, bytes](), None
        while True:
            header = _read(file, position, BLOCK_BYTES, file_bytes)
            if header == END and position == start:
                _check_rest(file, position, file_bytes)
                return
            _check_checksum(header, position, position == start > 0)
            kind, size = header[156:157], _size(header[124:136])
            position += BLOCK_BYTES
            if kind not in (*PAX, GLOBAL_PAX, LONG_NAME, LONG_LINK):
                break
            content = _read_extension(file, position, size, file_bytes)
            position += _padded(size)
            if kind == LONG_NAME:
                long_name = content.split(b"\0", 1)[0]
            elif kind != LONG_LINK:
                (global_attributes if kind == GLOBAL_PAX else attributes).update(_pax_records(content))
        attributes = {**global_attributes, **attributes}
        name = attributes.get(b"path") or long_name or _name(header)
        if kind == SPARSE or b"sparse" in attributes:
            raise DamagedTarError(
                f"a sparse file at byte {start}", f"has a sparse file at byte {start}, which is not read"
            )
        if kind in WITHOUT_CONTENT or (kind == b"\0" and _name(header).endswith(b"/")):
            if lost is not None and kind in WITHOUT_CONTENT and kind != DIRECTORY:
                lost.append(LostMember(WITHOUT_CONTENT[kind], _text(name)))
            start = position
            continue
        if attributes.get(b"size"):
            size = _decimal(attributes[b"size"])
        end = position + _padded(size)
        if position + size > file_bytes:
            raise _truncated(file_bytes)
        if kind in REGULAR:
            yield TarMember(_text(name), position, size, end)
        elif lost is not None:
            lost.append(LostMember("member of an unknown kind", _text(name)))
        start = end


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")


def _check_rest(file: BinaryIO, position: int, file_bytes: int) -> None:
    # an interrupted copy may have its full length, and zeros where the rest should be
    rest = file_bytes - position
    if rest > MAX_PADDING_BYTES and not _fits_large_record(rest, file_bytes):
        raise DamagedTarError(
            "no end", f"has {rest} bytes after its end at byte {position}: a part is missing, or it is two tars in one"
        )
    file.seek(position)
    if file.read(rest).strip(b"\0"):
        raise DamagedTarError("no end", f"is damaged at byte {position}: there is more after its end")


def _fits_large_record(rest: int, file_bytes: int) -> bool:
    """Whether a tar consists of records of some MiB, as by `tar --blocking-factor 4096`, and ends in its last one."""
    records = (number * MEBIBYTE for number in range(1, MAX_RECORD_MEBIBYTES + 1))
    return any(file_bytes % record == 0 and rest <= record + BLOCK_BYTES for record in records)


def _read(file: BinaryIO, position: int, size: int, file_bytes: int) -> bytes:
    content = b""
    if position + size <= file_bytes:
        file.seek(position)
        content = file.read(size)
    if len(content) < size:
        raise (
            DamagedTarError("empty file" if file_bytes == 0 else "truncated header")
            if position == 0
            else _truncated(file_bytes)
        )
    return content


def _truncated(file_bytes: int) -> DamagedTarError:
    return DamagedTarError(f"it ends at byte {file_bytes}", f"is truncated at byte {file_bytes}")


def _check_checksum(header: bytes, position: int, may_be_end: bool) -> None:
    field = header[148:156]
    unsigned = sum(header) - sum(field) + 8 * ord(" ")
    signed = unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:]) if not header.isascii() else 0
    if _octal(field) not in (unsigned, signed or unsigned):
        # where the archive could have ended, all that is certain is the position
        raise DamagedTarError(
            f"bad checksum at byte {position}", f"is damaged at byte {position}" if may_be_end else None
        )


def _octal(field: bytes) -> int | None:
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits, 8) if OCTAL.fullmatch(digits) else None if digits else 0


def _decimal(digits: bytes) -> int:
    if not DECIMAL.fullmatch(digits):
        raise DamagedTarError(f"{digits[:20]!r} is no size")
    return int(digits)


def _size(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: too large for octal digits
        return int.from_bytes(field[1:], "big")
    size = _octal(field)
    if size is None:
        raise DamagedTarError("a size is no number, or negative")
    return size


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0", 1)[0], header[345:500].split(b"\0", 1)[0]
    is_gnu = header[257:263] == b"ustar "  # which keeps times in the place of the prefix
    return prefix + b"/" + name if prefix and not is_gnu else name


def _read_extension(file: BinaryIO, position: int, size: int, file_bytes: int) -> bytes:
    if size > MAX_EXTENDED_BYTES:
        raise DamagedTarError(f"a header of {size} bytes")
    return _read(file, position, size, file_bytes)


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records that matter: "path", "size", and "sparse" if there is any of a sparse file."""
    position = 0
    while position < len(content) and content[position]:
        space = content.find(b" ", position, position + 20)
        end = position + _decimal(content[position:space] if space > 0 else b"")
        key, equals, value = content[space + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(content):
            raise DamagedTarError("a damaged pax header")
        if key in (b"path", b"size"):
            yield key, value[:-1]
        elif key.startswith(b"GNU.sparse."):
            yield b"sparse", b""
        position = end


# Written so that matching takes time in proportion to the length of the name; a hidden file is a field of its folder.
_MEMBER_NAME = re.compile(r"((?:.*/|)(?:[^./]+|[^./]*/))\.([^/]*)", re.DOTALL)
_METADATA = re.compile(r"(?:\./)?__(?:[^/]*__(?:/|\Z)|meta__\.)")


def sample_member(name: str) -> tuple[str, str] | None:
    """Return key and field of a member of a shard by webdataset's rule; None for one that belongs to no sample.

    The key is the path up to the first dot of the file name, the field is what follows, in lower case. `__meta__` and
    other names between double underscores hold no samples, nor do `._NAME` and `.DS_Store`, which macOS adds.

    Args:
        name: of the member, as it is stored.
    """
    file_name = name[name.rfind("/") + 1 :]
    if file_name.startswith("._") or file_name == ".DS_Store" or _METADATA.match(name):
        return None
    match = _MEMBER_NAME.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


class SplitSampleError(Exception):
    """The members of a sample are not adjacent. The message is the predicate of a sentence about the tar."""


class SplitSampleCheck:
    """Finds samples whose members are not adjacent in their tar, which would be taken for several samples.

    A key that comes again with the same fields is another sample, as in webdataset; one that comes again with other
    fields is the rest of the sample before.
    """

    def __init__(self) -> None:
        self._fields: dict[int, frozenset[str]] = {}  # by the hash of a key, which may be long
        self._known: dict[frozenset[str], frozenset[str]] = {}

    def add(self, key: str, fields: Iterable[str]) -> None:
        """Enter the next sample of a tar.

        Raises:
            SplitSampleError: it is the rest of a sample that came before.
        """
        named = frozenset(fields)
        earlier = self._fields.get(hash(key))
        if earlier is not None and earlier.isdisjoint(named):
            raise SplitSampleError(
                f"has members of sample {key[:MAX_KEY_LETTERS]!r} in two places; write it again with the members of "
                "each sample together, as tar --sort=name does"
            )
        self._fields[hash(key)] = self._known.setdefault(named, named)
