"""Tars of all kinds, made byte by byte, and their mutations."""

import io
import tarfile

import numpy as np
from hypothesis import strategies as st

from tests.data.fuzzing import any_mutation, mutation, mutations, place
from tests.data.shard_files import npy

BLOCK = 512


def tar_header(name=b"0.tokens.npy", size=b"00000000000", kind=b"0", magic=b"ustar\0" + b"00", prefix=b"", link=b""):
    """A header with the right checksum around any bytes."""
    fields = [(name, 100), (b"0000644", 8), (b"0", 8), (b"0", 8), (size, 12), (b"0", 12), (b" " * 8, 8), (kind, 1)]
    fields += [(link, 100), (magic, 8), (b"", 32), (b"", 32), (b"", 8), (b"", 8), (prefix, 155), (b"", 12)]
    return sealed(b"".join(value[:length].ljust(length, b"\0") for value, length in fields))


def sealed(header):
    unsummed = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(unsummed) + header[156:]


def padded(content):
    return content + bytes(-len(content) % BLOCK)


def octal(number):
    return b"%011o" % number


def binary(number):
    """A size as GNU writes it where octal digits do not suffice, or where it is negative."""
    first = b"\x80" if number >= 0 else b"\xff"
    return first + (number % (1 << 88)).to_bytes(11, "big")


def pax_record(key, value):
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records, kind=b"x", size=None):
    content = b"".join(record if isinstance(record, bytes) else pax_record(*record) for record in records)
    return tar_header(b"pax", octal(len(content)) if size is None else size, kind) + padded(content)


def gnu_long(name, kind=b"L", size=None):
    return tar_header(b"././@LongLink", octal(len(name)) if size is None else size, kind) + padded(name)


def file_member(name, content, size=None):
    return tar_header(name, octal(len(content)) if size is None else size) + padded(content)


def sample_members(number):
    tokens = np.arange(number, number + 5, dtype=np.uint16)
    yield "tokens.npy", npy(tokens)
    yield "cls", str(number).encode()
    yield "documents.npy", npy(np.zeros(5, np.uint8))


def whole_tar(tar_format, keys=("0", "1", "2"), sparse=False):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format, encoding="utf-8", errors="surrogateescape") as tar:
        for number, key in enumerate(keys):
            for field, content in sample_members(number):
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size, member.mtime = len(content), 0.5 if tar_format == tarfile.PAX_FORMAT else 0
                tar.addfile(member, io.BytesIO(content))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
                member = tarfile.TarInfo(f"{key}.x")
                member.type, member.linkname = kind, "/etc/passwd"
                tar.addfile(member)
    return file.getvalue()


END = bytes(2 * BLOCK)


LONG = "folder/" * 30 + "k" * 150


SEEDS = [
    whole_tar(tarfile.USTAR_FORMAT),
    whole_tar(tarfile.USTAR_FORMAT, ["a" * 90 + "/" + "b" * 80]),
    whole_tar(tarfile.PAX_FORMAT),
    whole_tar(tarfile.PAX_FORMAT, ["0", LONG, "ä/ö"]),
    whole_tar(tarfile.GNU_FORMAT, ["0", LONG]),
    pax((b"comment", b"x" * 600), kind=b"g") + whole_tar(tarfile.USTAR_FORMAT, ["0", "1"]),
    file_member(b"0.txt", b"text") + pax((b"GNU.sparse.map", b"0,1,9,1")) + file_member(b"1.txt", b"ab") + END,
    file_member(b"0.txt", b"text") + tar_header(b"1.txt", octal(2), b"S") + padded(b"ab") + END,
    whole_tar(tarfile.USTAR_FORMAT, ["0", "1", "__meta__/2", "._3", "4/._5", "6"]),
    whole_tar(tarfile.USTAR_FORMAT)[: 20 * BLOCK] + whole_tar(tarfile.PAX_FORMAT),
]


ABSURD = [
    0,
    1,
    -1,
    -512,
    -1024,
    511,
    512,
    513,
    2**31,
    2**33 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    2**80,
    -(2**80),
]


ABSURD_SIZES = [b"", b" ", b"-1", b"-0000000512", b"777777777777", b"9", b"0o17", b"1_0", b"+7", b"\x81" + b"\xff" * 11]


ABSURD_SIZES += [binary(number) for number in ABSURD] + [octal(number) for number in ABSURD if 0 <= number < 2**33]


ABSURD_NUMBERS = [str(number).encode() for number in ABSURD] + [b"", b"nan", b"1e9", b"9" * 5000, b"0x10", b" 5"]


ABSURD_NUMBERS += ["\u0663".encode()]


ABSURD_NAMES = [b"", b".", b"..", b"/", b".tokens.npy", b"../../x.tokens.npy", b"/x.cls", b"\0", b"\xff\xfe.tokens.npy"]


ABSURD_NAMES += [b"\x1b[2J\n.cls", b"a/.cls", b"x" * 300 + b".cls", b"0." + b"f" * 300, b"a/" * 3000, b"." * 5000]


ABSURD_NAMES += [b"0.TOKENS.NPY", b"1.Cls", b"__meta__/0.tokens.npy", b"__meta__.json", b"._0.tokens.npy", b"0/._1.cls"]


ABSURD_NAMES += [b"0/.DS_Store", b"0.documents.npy", b"2.cls", b"__" * 5000, b"__" * 5000 + b"/0.cls"]


PAX_KEYS = [b"path", b"size", b"linkpath", b"GNU.sparse.size", b"GNU.sparse.map", b"hdrcharset", b"mtime", b"", b"\0"]


HEADER_PLACES = {"name": (0, 100), "size": (124, 12), "kind": (156, 1), "magic": (257, 8), "prefix": (345, 155)}


kinds = st.sampled_from([bytes([kind]) for kind in b"\x000123457SLKxgXDMVNA \xff"])


names = st.sampled_from(ABSURD_NAMES) | st.binary(max_size=120)


sizes = st.sampled_from(ABSURD_SIZES) | st.binary(max_size=12) | st.integers(0, 5000).map(octal)


numbers = st.sampled_from(ABSURD_NUMBERS) | st.integers(0, 5000).map(lambda number: b"%d" % number)


records = (
    st.tuples(st.sampled_from(PAX_KEYS), numbers | names).map(lambda record: pax_record(*record))
    | st.builds(lambda number, key: number + b" " + key + b"=", numbers, st.sampled_from(PAX_KEYS))
    | st.binary(max_size=40)
)


extensions = st.builds(
    lambda found, kind, size: pax(*found, kind=kind, size=size),
    st.lists(records, max_size=4),
    st.sampled_from([b"x", b"g", b"X", b"L", b"K"]),
    st.none() | st.none() | sizes,
) | st.builds(gnu_long, names, st.sampled_from([b"L", b"K"]), st.none() | sizes)


headers = st.builds(tar_header, names, sizes, kinds)


def at_header(content, number):
    """One of the places where a header is, if there is any."""
    starts = [
        start
        for start in range(0, len(content) - BLOCK + 1, BLOCK)
        if content[start + 257 : start + 262] == b"ustar" and content[start] != 0
    ]
    return starts[number % len(starts)] if starts else 0


def insert_blocks(content, where, new):
    start = at_header(content, where)
    return content[:start] + new + content[start:]


def duplicate(content, where, count, to):
    start = at_header(content, where)
    return insert_blocks(content, to, content[start : start + count * BLOCK])


def rewrite(content, where, values):
    start = at_header(content, where)
    header = content[start : start + BLOCK]
    if len(header) < BLOCK:
        return content
    for name, value in values.items():
        offset, length = HEADER_PLACES[name]
        header = header[:offset] + value[:length].ljust(length, b"\0") + header[offset + length :]
    return content[:start] + sealed(header) + content[start + BLOCK :]


tar_mutation = [
    *any_mutation,
    mutation(duplicate, place, st.integers(1, 9), place),
    mutation(lambda content, where, other: insert_blocks(content, where, other), place, st.sampled_from(SEEDS)),
    mutation(rewrite, place, st.fixed_dictionaries({"size": sizes})),
    mutation(
        rewrite,
        place,
        st.fixed_dictionaries({}, optional={"name": names, "size": sizes, "kind": kinds, "prefix": names}),
    ),
    mutation(insert_blocks, place, extensions),
    mutation(insert_blocks, place, headers),
    mutation(
        lambda content, where, new, times: insert_blocks(content, where, new * times),
        place,
        extensions,
        st.sampled_from([2, 100, 1500]),
    ),
]


damaged_tars = mutations(*tar_mutation)(st.sampled_from(SEEDS))


made_up_tars = st.lists(extensions | headers | st.binary(max_size=700).map(padded), max_size=6).map(
    lambda parts: b"".join(parts) + END
)
