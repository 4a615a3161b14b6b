"""Damaged and hostile input files of all formats."""

import bz2
import gzip
import io
import lzma
import os
import random
import re
import shutil
import warnings
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nar_scale.errors import UserError
from tests.data.formats.npys import NPYS
from tests.data.formats.tars import END, SEEDS, file_member, npy, tar_header, tar_mutation
from tests.data.fuzzing import (
    MIB,
    ROUNDS,
    any_mutation,
    bounded,
    check_message,
    cpu_limit,
    documents_or_refusal,
    fuzz,
    in_child,
    insert,
    mutation,
    mutations,
    place,
)
from tests.data.preparation.preparing import made

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


ARRAY = b'[{"text": "one"},\n {"n": [1], "text": "two \xc3\xa4"}, {"text": ""}, {"text": null}]\n'
PRETTY = b'{\n  "text": "one",\n  "n": 1\n}\n{\n  "text": "two"\n}\n'
TABLE = b'id,text\n1,one\n2,"two ""\xc3\xa4"",\nthree"\n\n3,\n'


CORPORA = {
    "a.json": [
        LINES,
        ARRAY,
        PRETTY,
        b"\xef\xbb\xbf" + ARRAY,
        b"[" * 3000,
        b'{"a": ' * 3000,
        b'[{"text": ' + b"9" * 5000,
    ],
    "a.json.gz": [gzip.compress(content, mtime=0) for content in (LINES, ARRAY, PRETTY)],
    "a": [LINES, ARRAY, PRETTY, b"[link](x)\n", b"text"],
    "a.csv": [TABLE, b"\xef\xbb\xbf" + TABLE, b"text\n" * 50],
    "a.tsv.gzip": [gzip.compress(TABLE.replace(b",", b"\t"), mtime=0)],
    "a.jsonlines.bz2": [bz2.compress(LINES), bz2.compress(LINES) * 2],
    "a.ndjson.xz": [lzma.compress(LINES), lzma.compress(LINES) + bytes(8) + lzma.compress(LINES)],
    "a.jsonl": [LINES, b"\xef\xbb\xbf" + LINES, b"[" * 3000 + b"\n", b'{"text": ' + b"9" * 5000 + b"}\n"],
    "a.jsonl.gz": [gzip.compress(LINES, mtime=0), gzip.compress(LINES, mtime=0) * 2],
    "a.txt.gz": [gzip.compress(b"text " * 500, mtime=0)],
    "a.npy": [npy(np.arange(12).reshape(3, 4)), npy(np.arange(5, dtype=np.uint16)), *NPYS],
    "a.npz": [npz(tokens=np.arange(12).reshape(3, 4), labels=np.arange(3)), npz(x=np.arange(6))],
    "a.tar": [
        file_member(b"0.json", b'{"text": null}') + tar_header(b"1.txt", kind=b"1", link=b"0.json") + END,
        b"".join(file_member(b"%d.%s" % (n, field), b"7") for field in (b"txt", b"cls") for n in range(2)) + END,
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


KINDS = {
    **dict.fromkeys(("a.jsonl", "a.json", "a", "a.csv"), json_mutations),
    "a.tar": mutations(*tar_mutation),
}


@pytest.mark.parametrize("name", CORPORA)
@given(data=st.data())
@fuzz(60)
def test_a_mutated_input_is_read_or_refused(directory, name, data):
    kind = KINDS.get(name, mutations(*any_mutation))
    content = data.draw(kind(st.sampled_from(CORPORA[name])))
    file = directory / name
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with bounded(len(content), factor=64, constant=(24 if name.endswith(".xz") else 8) * MIB):
            found = documents_or_refusal(file, 1 << 20)
        with cpu_limit():
            assert documents_or_refusal(file, 1 << 20) == found
            assert isinstance(found, str) or name == "a.npz" or documents_or_refusal(file, 7) == found
    if ".js" in name and not isinstance(found, str):  # no JSON is taken for text
        assert not [d for d in found if not isinstance(d, str) and d[0].lstrip()[:2] in (b'{"', b"[{", b"{\n")]


GOOD = {name: seeds[:2] for name, seeds in CORPORA.items() if ".np" not in name}
GOOD |= {"c.json": [ARRAY], "d.txt": [LINES, b"text"], "d.dat": [PRETTY], "b.tgz": [b""], ".hidden": [b""]}
good_files = st.sampled_from([(name, content) for name, seeds in GOOD.items() for content in seeds])
any_files = st.tuples(st.sampled_from(list(GOOD)), st.sampled_from([*chain(*CORPORA.values())]))
folders = st.lists(st.one_of(*[good_files] * 9, any_files), min_size=1, max_size=4).map(dict)


@given(files=folders, linked=st.booleans())
@fuzz(100)
def test_a_folder_of_anything_is_prepared_whole_or_refused(directory, files, linked):
    """Each document is in the data set, or is counted as skipped, or the run is refused, whatever the files' names."""
    corpus, blobs = directory / "corpus", directory / "blobs"
    for folder in (corpus, blobs, directory / "data"):
        shutil.rmtree(folder, ignore_errors=True)
    corpus.mkdir()
    blobs.mkdir()
    for number, (name, content) in enumerate(files.items()):
        (blobs / str(number)).write_bytes(content)
        (os.symlink if linked else os.link)(blobs / str(number), corpus / name)
    is_read = {name: name not in ("b.tgz", ".hidden") for name in files}
    with cpu_limit():
        found = [documents_or_refusal(corpus / name, MIB) for name in files if is_read[name]]
        try:
            info = made(corpus, directory / "data")
        except UserError as error:
            check_message(error)
            return
    refused = [of_file for of_file in found if isinstance(of_file, str)]
    assert all(re.search("has no column|no key|is not a JSON object", message) for message in refused)  # no text
    documents = [document for of_file in found if isinstance(of_file, list) for document in of_file]
    skipped = sum(isinstance(document, str) for document in documents)
    assert info.splits["train"].documents == len(documents) - skipped
    assert sum(info.skipped.values()) == skipped + len(refused) + sum(not read for read in is_read.values())


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
