"""Damaged and hostile tars: they are read, or refused in one line; never a crash, a hang or memory without end."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nar_scale.data import DatasetIndex
from nar_scale.data.formats.tar import SplitSampleError
from nar_scale.data.loading.tar_stream import read_tar_stream
from nar_scale.data.shards.shard_scan import DUPLICATE, MISSING, scan_shard
from nar_scale.errors import DataError
from tests.data.formats.tars import (
    BLOCK,
    END,
    SEEDS,
    binary,
    damaged_tars,
    file_member,
    gnu_long,
    made_up_tars,
    octal,
    pax,
    tar_header,
)
from tests.data.fuzzing import (
    FORMAT,
    MIB,
    bounded,
    check_message,
    cpu_limit,
    documents_or_refusal,
    fuzz,
    in_child,
    read_all,
)
from tests.data.shard_files import write_tar

pytestmark = pytest.mark.usefixtures("no_waiting")


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
        found.append([scan.keys.tolist(), scan.fields, scan.spans.tolist(), scan.damage])
    except DataError as error:
        check_message(error)
        found.append(str(error))
    # the first time the index is made, the second time it is there
    for skip_faults, memory_map in ((False, True), (True, True), (True, False)):
        fields = FORMAT.fields if not skip_faults else ()
        found.append(open_and_read(directory, skip_faults, fields, memory_map))
    return found


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


@given(
    members=st.lists(
        st.tuples(
            st.sampled_from(["0", "1", "x/0", "x.y/1", "__meta__", "__meta__/0", "._0", "x/._0", "é"]),
            st.sampled_from(["a", "A", "b.c", "B.c", "B.C"]),
        ),
        max_size=8,
    )
)
@fuzz(200)
def test_both_streams_find_the_same_samples(directory, members):
    shard = write_tar(
        directory / "shard.tar", [(f"{key}.{field}", b"%d" % number) for number, (key, field) in enumerate(members)]
    )
    try:
        in_order: list | str = [
            {field: content for field, content in sample.items() if not field.startswith("__")}
            for sample in read_tar_stream(str(shard))
        ]
    except SplitSampleError:
        in_order = "split"
    except ValueError:
        in_order = "twice"
    try:
        scan, content = scan_shard(shard), shard.read_bytes()
    except DataError as error:
        check_message(error)
        assert in_order in ("split", "twice")
        return
    by_number = [
        {
            field: content[offset : offset + size] if offset != DUPLICATE else None
            for field, (offset, size, _) in zip(scan.fields, spans)
            if offset != MISSING
        }
        for spans in scan.spans.tolist()
    ]
    if any(None in sample.values() for sample in by_number):
        assert in_order == "twice"
    else:
        assert by_number == in_order


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
    "names of lines": pax((b"path", b"_" * (MIB // 2) + b".txt")) + file_member(b"a", b""),
    "keys apart": b"".join(tar_header(b"%d.%s" % (number, field)) for field in (b"a", b"b") for number in range(2500)),
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
            documents_or_refusal(tmp_path / "shard.tar", MIB)
        return "done"

    assert in_child(work, memory=96 * MIB + 16 * len(content)) == "done"
