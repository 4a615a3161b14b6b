"""Hostile and damaged bytes: they are read, or refused in one line; never a crash, a hang or memory without end.

`FUZZ_ROUNDS=20 pytest tests/data/test_fuzz.py` draws that many times as many examples, other ones each time.
"""

import gzip
import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import struct
import tarfile
import traceback
import tracemalloc
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nar_scale.data import DatasetIndex
from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.data.formats.npy import decode_alike, decode_npy
from nar_scale.data.loading.collate import BatchReader
from nar_scale.data.shards.sample_format import SampleFormat
from nar_scale.data.shards.shard_scan import scan_shard
from nar_scale.errors import DataError, UserError

from .shards import index_file

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1"))
BLOCK = 512
CPU_SECONDS = 10.0
KIB, MIB = 1 << 10, 1 << 20
LONGEST_MESSAGE = 2000


def fuzz(examples):
    return settings(
        max_examples=examples * ROUNDS,
        deadline=None,
        derandomize=ROUNDS == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    pass


def hung(*_):
    raise Hang


@contextmanager
def cpu_limit(seconds=CPU_SECONDS):
    """A limit on processor time, so that a busy machine does not matter; pytest-timeout keeps its own alarm."""
    previous = signal.signal(signal.SIGPROF, hung)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


@contextmanager
def bounded(input_bytes, factor=32, constant=4 * MIB):
    """Limits on processor time and on what Python and numpy allocate."""
    tracemalloc.start()
    try:
        with cpu_limit():
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < factor * input_bytes + constant, f"{peak} bytes for an input of {input_bytes}"


def check_message(error):
    text = str(error)
    assert text.isprintable(), text
    assert 0 < len(text) < LONGEST_MESSAGE, text[:LONGEST_MESSAGE]


def in_child(work, *arguments, memory=None):
    """Run a function in a process of its own, which may be killed: returns what it says, or its exit code."""

    def run(pipe):
        if memory is not None:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        try:
            pipe.send(work(*arguments))
        except BaseException:
            pipe.send(traceback.format_exc())

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=run, args=(sender,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of libraries that the child does not use
        child.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    child.join()
    return result if child.exitcode == 0 else f"exit code {child.exitcode}"


# Tars


def npy(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version=version)
    return file.getvalue()


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
PAX_KEYS = [b"path", b"size", b"linkpath", b"GNU.sparse.size", b"GNU.sparse.map", b"hdrcharset", b"mtime", b"", b"\0"]
HEADER_PLACES = {"name": (0, 100), "size": (124, 12), "kind": (156, 1), "magic": (257, 8), "prefix": (345, 155)}

place = st.integers(0, 1 << 16)
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


def at(content, number):
    return number % (len(content) + 1)


def at_header(content, number):
    """One of the places where a header is, if there is any."""
    starts = [
        start
        for start in range(0, len(content) - BLOCK + 1, BLOCK)
        if content[start + 257 : start + 262] == b"ustar" and content[start] != 0
    ]
    return starts[number % len(starts)] if starts else 0


def flip(content, where, mask):
    return (
        content[: at(content, where)]
        + bytes(b ^ mask for b in content[at(content, where) :][:1])
        + (content[at(content, where) + 1 :])
    )


def insert(content, where, new):
    return content[: at(content, where)] + new + content[at(content, where) :]


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


def mutation(function, *arguments):
    return st.tuples(*arguments).map(lambda drawn: lambda content: function(content, *drawn))


def mutations(*functions):
    def apply(content, changes):
        for change in changes:
            content = change(content)
        return content

    return lambda seeds: st.builds(apply, seeds, st.lists(st.one_of(*functions), min_size=1, max_size=4))


any_mutation = [
    mutation(flip, place, st.integers(1, 255)),
    mutation(lambda content, where: content[: at(content, where)], place),
    mutation(insert, place, st.binary(max_size=600)),
]
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
FORMAT = SampleFormat(8, 100, class_field="cls", num_classes=10, document_field="documents.npy")


def read_all(index, sample_format=FORMAT, skip_faults=False, batch=4, most=300):
    reader = BatchReader(index, sample_format, skip_faults)
    rows = []
    for start in range(0, min(index.num_samples, most), batch):
        ids = np.arange(start, min(start + batch, index.num_samples))
        arrays = reader.read(ids, np.zeros_like(ids), ids)
        for message in arrays.faults:
            check_message(message)
        rows += [arrays.tokens.tolist(), arrays.lengths.tolist(), arrays.classes.tolist(), arrays.faults]
    return rows


def open_and_read(directory, skip_faults, fields, memory_map):
    """What comes out of the shards of a directory, or the message of the DataError."""
    try:
        index = DatasetIndex.open(
            directory, "*.tar", fields, progress=False, skip_faults=skip_faults, memory_map=memory_map
        )
        found = [index.fingerprint, index.counts.tolist(), index.damages]
        return found + read_all(index, skip_faults=skip_faults)
    except DataError as error:
        check_message(error)
        return str(error)


def outcomes(directory, content):
    """All that a shard gives, in every way of reading it."""
    shard = directory / "shard.tar"
    found = []
    for path in directory.iterdir():
        path.unlink()
    shard.write_bytes(content)
    try:
        scan = scan_shard(shard)
        found.append([scan.keys.tolist(), scan.fields, scan.places.tolist(), scan.damage])
    except DataError as error:
        check_message(error)
        found.append(str(error))
    # the first time the index is made, the second time it is there
    for skip_faults, memory_map in ((False, True), (True, True), (True, False)):
        fields = FORMAT.fields if not skip_faults else ()
        found.append(open_and_read(directory, skip_faults, fields, memory_map))
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True, scope="module")
def hurry():
    """No waiting for file systems to come back, nor for disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nar_scale.data.shards.shard_reader.RETRY_WAITS", ())
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def check_tar(directory, content):
    with bounded(len(content)):
        first = outcomes(directory, content)
    with cpu_limit():
        assert outcomes(directory, content) == first


@given(content=damaged_tars)
@fuzz(100)
def test_a_mutated_tar_is_read_or_refused(directory, content):
    check_tar(directory, content)


@given(content=made_up_tars)
@fuzz(80)
def test_a_made_up_tar_is_read_or_refused(directory, content):
    check_tar(directory, content)


@given(content=st.binary(max_size=3000))
@fuzz(30)
def test_random_bytes_are_no_tar(directory, content):
    check_tar(directory, content)


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_every_cut_of_a_tar_is_read_or_refused(directory, seed):
    content = SEEDS[seed]
    whole = scan_of(directory, content)
    for end in {*range(0, len(content), BLOCK), *range(37, len(content), 1371)}:
        scan = scan_of(directory, content[:end])
        assert scan.damage is not None or end >= len(content.rstrip(b"\0")) + BLOCK
        samples = len(scan.keys)
        assert scan.keys.tolist() == whole.keys.tolist()[:samples]


def scan_of(directory, content):
    shard = directory / "shard.tar"
    shard.write_bytes(content)
    return scan_shard(shard)


@given(
    members=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300),
            st.binary(max_size=1200),
        ),
        max_size=5,
    ),
    tar_format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@fuzz(100)
def test_any_tar_that_the_standard_library_writes_is_read(directory, members, tar_format):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format, encoding="utf-8") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    check_against_standard_library(directory, file.getvalue())


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5])
def test_the_seeds_are_read_as_the_standard_library_does(directory, seed):
    check_against_standard_library(directory, SEEDS[seed])


def check_against_standard_library(directory, content):
    from nar_scale.data.formats.tar import tar_members

    with tarfile.open(fileobj=io.BytesIO(content), encoding="utf-8", errors="surrogateescape") as tar:
        expected = [(member.name.rstrip("/"), member.offset_data, member.size) for member in tar if member.isreg()]
    found = [
        (member.name.rstrip("/"), member.offset, member.size)
        for member in tar_members(io.BytesIO(content), len(content))
    ]
    assert found == expected
    assert scan_of(directory, content).damage is None


def samples_of_nothing(count, name):
    return b"".join(tar_header(name % number) for number in range(count))


EXTREMES = {
    "negative size": file_member(b"0.txt", b"a", binary(-1024)),
    "negative size of an unknown kind": file_member(b"0.txt", b"") + tar_header(b"0.txt", binary(-512), b"Z"),
    "negative size of a pax header": pax((b"path", b"0.txt"), size=binary(-512)) + file_member(b"a", b""),
    "negative pax size": file_member(b"0.txt", b"") + pax((b"size", b"-1536")) + tar_header(b"0.txt", octal(0), b"Z"),
    "size of a pax header": pax((b"path", b"0.txt"), size=binary(2**80)),
    "long name of an exabyte": gnu_long(b"0.txt", size=binary(2**60)) + file_member(b"a", b""),
    "long name of a megabyte": gnu_long(b"a/" * (MIB // 2)) + file_member(b"a", b""),
    "long name of two megabytes": gnu_long(b"a/" * MIB) + file_member(b"a", b""),
    "long name of dots": pax((b"path", b"a." * (MIB // 4))) + file_member(b"a", b""),
    "long name of hidden folders": pax((b"path", b"/." * (MIB // 4))) + file_member(b"a", b""),
    "long key": pax((b"path", b"a" * (MIB // 2) + b".txt")) + file_member(b"a", b""),
    "long field": pax((b"path", b"a." + b"txt" * (MIB // 4))) + file_member(b"a", b""),
    "records within records": pax(b"2 " * (MIB // 2 - 8) + b"a=b\n") + file_member(b"0.txt", b""),
    "records without end": pax(b"9" * (MIB // 2) + b" a=b\n") + file_member(b"0.txt", b""),
    "many records": pax(*[(b"k%d" % number, b"") for number in range(20_000)]) + file_member(b"0.txt", b""),
    "many records for all": pax(*[(b"k%d" % number, b"") for number in range(20_000)], kind=b"g")
    + samples_of_nothing(3000, b"%d.txt"),
    "chain of pax headers": pax((b"path", b"0.txt")) * 5000 + file_member(b"0.txt", b""),
    "chain of long names": gnu_long(b"0.txt") * 5000 + file_member(b"0.txt", b""),
    "chain of pax headers for all": pax((b"path", b"0.txt"), kind=b"g") * 5000,
    "sparse map": pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    + file_member(b"0.txt", b"999999999999\n" + b"0\n" * MIB),
    "sparse header": tar_header(b"0.txt", octal(512), b"S")[:386] + b"7" * 126,
    "many samples": samples_of_nothing(5000, b"%d.tokens.npy"),
    "many fields": samples_of_nothing(64, b"0.f%d") + samples_of_nothing(1500, b"%d.f0"),
    "too many fields": samples_of_nothing(3000, b"0.f%d"),
    "one field again and again": samples_of_nothing(5000, b"0.txt%.0d"),
    "links that lead to each other": tar_header(b"0.txt", kind=b"1", link=b"0.txt") * 1000,
}


@pytest.mark.parametrize("name", EXTREMES)
def test_an_extreme_tar_costs_no_more_than_its_length(tmp_path, name):
    content = EXTREMES[name] + END
    (tmp_path / "shard.tar").write_bytes(content)

    def work():
        with bounded(len(content), factor=16):
            try:
                scan = scan_shard(tmp_path / "shard.tar")
                assert scan.damage is None or scan.damage.isprintable()
            except DataError as error:
                check_message(error)
            open_and_read(tmp_path, True, (), True)
            read_documents(tmp_path / "shard.tar", MIB)
        return "done"

    assert in_child(work, memory=96 * MIB + 16 * len(content)) == "done"


# .npy


class Creates:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


DESCRIPTIONS = [
    "<i4", ">u2", "|i1", "<i8", "|b1", "<f8", "<c16", "O", "|O", "<U3", "|S5", "S0", "V0", "|V7", "S99999999999",
    "M8[D]", "m8[999999999s]", "(2,3)<i4", "(0,)<i4", "(2000000000,)<i4", "(2000000000,2000000000)i4", "i4,O",
    "i4," * 500, "", "nonsense", "\x1b[2J", None, 5, [], [("a", "<i4")], [("a", "O")], [("a\n", "<i4"), ("b", "|V3")],
    [("a", [("b", "<i4", (3,))])], [("a", "<i4"), ("a", "<i4")], ("<i4", (2, 2)), ("<i4", (2**31, 2**31)),
    {"names": ["a"], "formats": ["<i4"], "offsets": [2**30]}, [[[]]], (), ((),), True,
]  # fmt: skip
LENGTHS = [0, 1, 2, 3, 5, -1, True, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63), 10**4000]
SHAPES = [(), [3], 3, None, "(3,)", (3.0,), ("3",), (None,), ((3,),), (1,) * 33, (1,) * 65, (0,) * 64]
shapes = st.sampled_from(SHAPES) | st.lists(st.sampled_from(LENGTHS) | st.integers(0, 9), max_size=4).map(tuple)
fields = {
    "descr": st.sampled_from(DESCRIPTIONS),
    "fortran_order": st.sampled_from([False, True, False, True, 0, 1, "", None]),
    "shape": shapes,
}
header_texts = (
    st.fixed_dictionaries(fields).map(repr)
    | st.fixed_dictionaries({}, optional={**fields, "more": st.none()}).map(repr)
    | st.sampled_from(
        ["", "{", "(" * 9000, "[" * 150 + "]" * 150, "-" * 5000 + "1", "{'descr': '", "'''", "{**{}}", "1L"]
    )
    | st.sampled_from(
        ["{'descr': '<i4', 'fortran_order': False, 'shape': (3L,)}", "__import__('os')", "\0", "9" * 9000]
    )
    | st.text(max_size=60)
)


def npy_of(text, version, data, length):
    header = text.encode("utf-8", "surrogatepass")
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    length = len(header) if length is None else length
    return (
        b"\x93NUMPY" + bytes(version) + struct.pack("<H", length % 2**16) + b"\0\0" * (version[0] > 1) + header + data
    )


made_up_npys = st.builds(
    npy_of,
    header_texts,
    st.sampled_from([(1, 0), (1, 0), (2, 0), (2, 0), (3, 0), (1, 1), (0, 0), (255, 255)]),
    st.binary(max_size=64) | st.sampled_from([bytes(48), bytes(4096)]),
    st.none() | st.none() | st.none() | st.integers(0, 1 << 16),
)
NPYS = [npy(np.arange(24).reshape(2, 3, 4).astype(kind)) for kind in ("<i4", ">i2", "u1", "f8", "U4", "S3", "b1")]
NPYS += [npy(np.asfortranarray(np.arange(6).reshape(2, 3)), version) for version in ((1, 0), (2, 0), (3, 0))]
NPYS += [
    npy(np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])),
    npy(np.array("2020-01-01", "M8[D]")),
    npy(np.zeros(0, int)),
]
damaged_npys = mutations(*any_mutation)(st.sampled_from(NPYS))


def check_npy(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with bounded(len(content), factor=64, constant=16 * MIB):
            try:
                array = decode_npy(content)
            except ValueError as error:
                check_message(error)
                return None
        assert not array.dtype.hasobject
        assert not array.flags.writeable
        assert array.nbytes <= len(content)
        try:
            expected = np.load(io.BytesIO(content), allow_pickle=False)
        except Exception:
            return array
    assert (expected.dtype, expected.shape) == (array.dtype, array.shape)
    assert expected.tobytes() == array.tobytes()
    return array


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("<i4", (0, True)),
        ("<i4", (True, 1)),
        ("S0", (2, 2**62)),
        ("V0", (2**63,)),
        ("<i4", (0, 2**70)),
        ("<i4", (2**63, 0)),
        ("<i4", (-1, -1)),
        ("<i4", (-(2**63), 0)),
        ("<i4", (2**32, 2**32)),
        ("(0,)<i4", (3,)),
        ("(2000000000,)<i4", (2**40,)),
        ("|V2147483647", (2**40,)),
    ],
)
def test_an_impossible_shape_is_refused(kind, shape):
    for version in ((1, 0), (2, 0)):
        content = npy_of(repr({"descr": kind, "fortran_order": False, "shape": shape}), version, bytes(64), None)
        with pytest.raises(ValueError, match=r"shape|itemsize|ends in the middle|damaged"):
            decode_npy(content)
        with pytest.raises(ValueError, match=r"shape|itemsize|ends in the middle|damaged"):
            decode_alike([content, content])


@pytest.mark.parametrize("text", ["{'descr': '", "'''", "(" * 9000, "{'descr': (", " " * 20_000, "[" * 150 + "]" * 150])
def test_a_header_that_is_no_dictionary_is_refused(text):
    with pytest.raises(ValueError, match=r"header is damaged"):
        decode_npy(npy_of(text, (2, 0), bytes(64), None))


@given(content=made_up_npys)
@fuzz(300)
def test_a_made_up_npy_is_read_or_refused(content):
    check_npy(content)


@given(content=damaged_npys)
@fuzz(300)
def test_a_mutated_npy_is_read_or_refused(content):
    check_npy(content)


@given(content=st.binary(max_size=300).map(lambda rest: b"\x93NUMPY" + rest))
@fuzz(100)
def test_random_bytes_are_no_npy(content):
    check_npy(content)


@given(
    contents=st.lists(made_up_npys | damaged_npys | st.sampled_from(NPYS), min_size=1, max_size=3),
    times=st.integers(1, 2),
)
@fuzz(200)
def test_npys_that_are_alike_are_read_as_one_by_one(contents, times):
    contents = contents * times
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            together = decode_alike(contents)
        except ValueError as error:
            check_message(error)
            return
        if together is not None:
            assert [row.tobytes() for row in together] == [decode_npy(content).tobytes() for content in contents]


@given(content=made_up_npys | damaged_npys | st.binary(max_size=60), document=st.booleans())
@fuzz(200)
def test_any_member_makes_a_sample_or_is_refused(content, document):
    tokens = npy(np.arange(5, dtype=np.uint16))
    contents = {"tokens.npy": tokens, "cls": b"1", "documents.npy": npy(np.zeros(5, np.uint8))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in contents:
            try:
                sample = FORMAT.parse({**contents, name: content})
            except ValueError as error:
                check_message(error)
                continue
            assert 0 < len(sample.tokens) <= FORMAT.sequence_length
            assert 0 <= sample.tokens.min() <= sample.tokens.max() < FORMAT.vocabulary_size
            assert 0 <= sample.label < 10


def test_every_integer_as_a_class_is_read_or_refused():
    some = SampleFormat(8, 100, class_field="cls")
    array = SampleFormat(8, 100, class_field="cls.npy")
    tokens = npy(np.arange(5))
    for text in (b"0", b"-1", b"9" * 18, b"9" * 19, b"9" * 30, b"9" * 5000, b"", b" 7\n", b"\0", "\u0663".encode()):
        try:
            label = some.parse({"tokens.npy": tokens, "cls": text}).label
            assert np.array([label], dtype=np.int64)[0] == int(text)
        except ValueError as error:
            check_message(error)
    for value in (
        np.uint64(2**64 - 1),
        np.int8(-1),
        np.array([[3]]),
        np.float32(1),
        np.array([], int),
        np.array(["1"]),
    ):
        try:
            label = array.parse({"tokens.npy": tokens, "cls.npy": npy(value)}).label
            assert np.array([label], dtype=np.int64)[0] == np.asarray(value).item()
        except ValueError as error:
            check_message(error)


def test_no_npy_is_unpickled(tmp_path):
    evil = tmp_path / "evil"
    payload = pickle.dumps(Creates(evil))
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Creates(evil)], dtype=object), allow_pickle=True)
    texts = [f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': (1,)}}" for kind in ("O", [("a", "O")], "i4,O")]
    for content in [file.getvalue(), payload, *(npy_of(text, (1, 0), payload, None) for text in texts)]:
        with pytest.raises(ValueError, match=r"pickled Python objects|not a \.npy file|damaged"):
            decode_npy(content)
    assert not evil.exists()


# Index files

INDEX_SHARD = whole_tar(tarfile.USTAR_FORMAT, [str(number) for number in range(6)])
JSON_VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    6,
    7,
    255,
    256,
    257,
    2**31,
    2**63,
    2**70,
    1.0,
    6.0,
    1e308,
    "",
    "6",
    "1,f8",
    "\x1b[2J",
]
JSON_VALUES += [
    "../../x",
    "a" * 32,
    "A" * 32,
    "f" * 32,
    "g" * 32,
    [],
    {},
    [[]],
    ["tokens.npy"],
    ["cls"],
    {"cls": 1},
    [1],
]
JSON_VALUES += [{"x": -1}, ["tokens.npy"] * 3, ["documents.npy", "cls", "tokens.npy"], "abc", ["a"] * 70, 10**400]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed")
    (folder / "shard.tar").write_bytes(INDEX_SHARD)
    rows = read_all(DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False))
    return folder, (folder / "shard.tar.index").read_bytes(), rows


def check_index(indexed, content, may_be_wrong=False):
    folder, _, expected = indexed
    sidecar = folder / "shard.tar.index"
    for memory_map in (True, False):
        with bounded(len(content), factor=64):
            sidecar.write_bytes(content)
            try:
                index = DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False, memory_map=memory_map)
                rows = read_all(index)
                [check_message(index.name(number)) for number in range(index.num_samples)]
            except DataError as error:
                check_message(error)
                continue
        assert may_be_wrong or rows == expected


@given(content=st.binary(max_size=2000))
@fuzz(40)
def test_random_bytes_are_no_index(indexed, content):
    check_index(indexed, content)


@given(data=st.data())
@fuzz(100)
def test_an_index_with_other_values_is_made_again_or_refused(indexed, data):
    line, table = indexed[1].split(b"\n", 1)
    header = json.loads(line)
    changes = data.draw(
        st.dictionaries(
            st.sampled_from(
                ["format", "count", "key_bytes", "fields", "incomplete", "damage", "shard", "header_bytes"]
            ),
            st.sampled_from(JSON_VALUES),
            max_size=2,
        )
    )
    stamp = data.draw(
        st.dictionaries(
            st.sampled_from(["size", "mtime_ns", "digest", "more"]), st.sampled_from(JSON_VALUES), max_size=1
        )
    )
    header.update(changes)
    header["stamp"] = data.draw(st.sampled_from([{**header["stamp"], **stamp}] * 8 + JSON_VALUES))
    for key in data.draw(st.sets(st.sampled_from(sorted(header)), max_size=1)) if not changes else ():
        del header[key]
    table = data.draw(st.sampled_from([table, table, table, b"", table[:-1], table + b"\0", table * 2]))
    check_index(indexed, index_file(header, table))


@given(data=st.data())
@fuzz(100)
def test_a_mutated_index_does_no_harm(indexed, data):
    changed = data.draw(mutations(*any_mutation)(st.just(indexed[1])))
    check_index(indexed, changed)


OFFSETS = [0, 1, -1, -2, -3, 512, 1024, len(INDEX_SHARD) - 1, len(INDEX_SHARD), len(INDEX_SHARD) + 1, 2**31, 2**62]
FAR = [0, 5000, len(INDEX_SHARD), 2**63 - 1, -(2**63)]
OFFSETS += [2**63 - 1, -(2**63), -(2**62), -len(INDEX_SHARD)]


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 1), st.sampled_from(OFFSETS)),
        min_size=1,
        max_size=3,
    )
)
@fuzz(100)
def test_an_index_that_leads_out_of_its_shard_is_refused(indexed, changes):
    folder, content, _ = indexed
    index = DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False)
    del index
    line, table = content.split(b"\n", 1)
    fields = len(json.loads(line)["fields"])
    records = np.frombuffer(table, [("key", "S1"), ("places", "<i8", (fields, 2))]).copy()
    for row, column, part, value in changes:
        records["places"][row, column, part] = value
    check_index(indexed, index_file(json.loads(line), records.tobytes()), may_be_wrong=True)


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("place", list(itertools.product(FAR, [-1, -5000, 2**40, 2**63 - 1])))
def test_no_bytes_come_from_outside_a_shard(indexed, place, memory_map):
    folder, content, _ = indexed
    line, table = content.split(b"\n", 1)
    fields = len(json.loads(line)["fields"])
    records = np.frombuffer(table, [("key", "S1"), ("places", "<i8", (fields, 2))]).copy()
    records["places"][3, :] = place
    (folder / "shard.tar.index").write_bytes(index_file(json.loads(line), records.tobytes()))

    def work():
        index = DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False, memory_map=memory_map)
        with pytest.raises(DataError, match=r"index .* is damaged; delete it|no field") as raised:
            index.read(3, "cls")
        check_message(raised.value)
        with pytest.raises(DataError):
            index.read_many(np.arange(6), "cls")
        return "done"

    assert in_child(work, memory=256 * MIB) == "done"


# Inputs


def zstd(content):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


def parquet(rows):
    pyarrow, format_module = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    format_module.write_table(pyarrow.table({"text": rows, "n": list(range(len(rows)))}), file, row_group_size=4)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


LINES = b'{"text": "one"}\n\n{"n": 1, "text": "two \xc3\xa4"}\n{"text": ""}\n'
CORPORA = {
    "a.jsonl": [LINES, b"\xef\xbb\xbf" + LINES, b"[" * 3000 + b"\n", b'{"text": ' + b"9" * 5000 + b"}\n"],
    "a.jsonl.gz": [gzip.compress(LINES, mtime=0), gzip.compress(LINES, mtime=0) * 2],
    "a.txt.gz": [gzip.compress(b"text " * 500, mtime=0)],
    "a.npy": [npy(np.arange(12).reshape(3, 4)), npy(np.arange(5, dtype=np.uint16)), *NPYS],
    "a.npz": [npz(tokens=np.arange(12).reshape(3, 4), labels=np.arange(3)), npz(x=np.arange(6))],
    "a.tar": [
        b"".join(file_member(b"%d.txt" % number, b"text") for number in range(3)) + END,
        file_member(b"0.json", b'{"text": "a"}') + file_member(b"1.tokens.npy", npy(np.arange(3))) + END,
        *SEEDS[:5],
    ],
    "a.txt": [b"text\n" * 20],
}
json_mutations = mutations(
    *any_mutation,
    mutation(
        insert,
        place,
        st.sampled_from([b"\\ud800", b"\\u0000", b"{", b"}", b"[", b'"', b"\n", b"\xff", b"NaN", b"1" * 5000]),
    ),
)


def read_documents(file, piece_bytes):
    try:
        documents = [d for piece in split_into_pieces(file, piece_bytes) for d in read_piece(piece)]
        return [
            (d.text, None if d.tokens is None else d.tokens.tolist(), d.label) if hasattr(d, "text") else d.reason
            for d in documents
        ]
    except UserError as error:
        check_message(error)
        return re.sub("0x[0-9a-f]+", "0x", str(error))  # numpy names nodes by their address


@pytest.mark.parametrize("name", CORPORA)
@given(data=st.data())
@fuzz(60)
def test_a_mutated_input_is_read_or_refused(directory, name, data):
    kind = {"a.jsonl": json_mutations, "a.tar": mutations(*tar_mutation)}.get(name, mutations(*any_mutation))
    content = data.draw(kind(st.sampled_from(CORPORA[name])))
    file = directory / name
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with bounded(len(content), factor=64, constant=8 * MIB):
            found = read_documents(file, 1 << 20)
        with cpu_limit():
            assert read_documents(file, 1 << 20) == found
            assert isinstance(found, str) or name == "a.npz" or read_documents(file, 7) == found


@given(data=st.data())
@fuzz(60)
def test_a_mutated_zst_is_read_or_refused(directory, data):
    content = data.draw(mutations(*any_mutation)(st.sampled_from([zstd(LINES), zstd(LINES) * 2])))
    file = directory / "a.jsonl.zst"
    file.write_bytes(content)
    with bounded(len(content), factor=64, constant=24 * MIB):
        read_documents(file, MIB)


def test_a_mutated_parquet_is_read_or_refused(tmp_path):
    file = tmp_path / "a.parquet"
    whole = parquet([f"text {number} ä" for number in range(10)])
    generator = random.Random(0 if ROUNDS == 1 else None)

    def mutated():
        content = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            change, where = generator.randrange(3), generator.randrange(len(content))
            if change == 0:
                content[where] ^= generator.randint(1, 255)
            elif change == 1:
                content[where : where + generator.randrange(30)] = generator.randbytes(generator.randrange(30))
            else:
                content[where:] = content[where:][: generator.randrange(len(content))]
        return bytes(content)

    def work(contents):
        for content in contents:
            file.write_bytes(content)
            with cpu_limit():
                read_documents(file, MIB)
        return "done"

    # in another process, for Arrow is C++ and has been seen to end it
    assert in_child(work, [mutated() for _ in range(150 * ROUNDS)]) == "done"
