"""Damaged and hostile input files of all formats."""

import gzip
import io
import random
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.formats.npys import NPYS
from tests.data.formats.tars import END, SEEDS, file_member, npy, tar_mutation
from tests.data.fuzzing import (
    MIB,
    ROUNDS,
    any_mutation,
    bounded,
    cpu_limit,
    documents_or_refusal,
    fuzz,
    in_child,
    insert,
    mutation,
    mutations,
    place,
)

pytestmark = pytest.mark.usefixtures("no_waiting")


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
            found = documents_or_refusal(file, 1 << 20)
        with cpu_limit():
            assert documents_or_refusal(file, 1 << 20) == found
            assert isinstance(found, str) or name == "a.npz" or documents_or_refusal(file, 7) == found


@given(data=st.data())
@fuzz(60)
def test_a_mutated_zst_is_read_or_refused(directory, data):
    content = data.draw(mutations(*any_mutation)(st.sampled_from([zstd(LINES), zstd(LINES) * 2])))
    file = directory / "a.jsonl.zst"
    file.write_bytes(content)
    with bounded(len(content), factor=64, constant=24 * MIB):
        documents_or_refusal(file, MIB)


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
                documents_or_refusal(file, MIB)
        return "done"

    # in another process, for Arrow is C++ and has been seen to end it
    assert in_child(work, [mutated() for _ in range(150 * ROUNDS)]) == "done"
