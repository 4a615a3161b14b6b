"""Damaged and hostile `.npy` arrays, also as members of samples."""

import io
import pickle
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nar_scale.data.formats.npy import decode_npy, decode_uniform
from nar_scale.data.shards.sample_format import SampleFormat
from tests.data.formats.npys import NPYS
from tests.data.formats.tars import npy
from tests.data.fuzzing import FORMAT, MIB, any_mutation, bounded, check_message, fuzz, mutations
from tests.data.shard_files import CreatesFile

pytestmark = pytest.mark.usefixtures("no_waiting")

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
        with pytest.raises(ValueError):  # noqa: PT011
            decode_npy(content)
        with pytest.raises(ValueError):  # noqa: PT011
            decode_uniform([content, content])


@pytest.mark.parametrize("text", ["{'descr': '", "'''", "(" * 9000, "{'descr': (", " " * 20_000, "[" * 150 + "]" * 150])
def test_a_header_that_is_no_dictionary_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011
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
            together = decode_uniform(contents)
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
    payload = pickle.dumps(CreatesFile(evil))
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([CreatesFile(evil)], dtype=object), allow_pickle=True)
    texts = [f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': (1,)}}" for kind in ("O", [("a", "O")], "i4,O")]
    for content in [file.getvalue(), payload, *(npy_of(text, (1, 0), payload, None) for text in texts)]:
        with pytest.raises(ValueError):  # noqa: PT011
            decode_npy(content)
    assert not evil.exists()
