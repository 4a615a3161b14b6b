"""Damaged and hostile `dataset.json` files: refused in one line, or what they say is what the shards hold."""

import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nar_scale.data import DatasetIndex, DatasetInfo, inspect, prepare, verify
from nar_scale.data.shards.shard_comparison import check_against_info
from nar_scale.errors import DataError
from tests.data.fuzzing import any_mutation, check_message, cpu_limit, fuzz, mutation, mutations, place
from tests.errors import refused

VALUES = [None, True, 0, 1, -1, 2.0, 257, 10**7, 2**40, 10**400]
VALUES += ["", "7", "\x1b[2J", "byte", "../x", [], {}, [1], {"a": 1}]
BAD_UTF_8 = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\0", "\u2028".encode(), b"\xef\xbb\xbf"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("info")
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"document {number} " * 5)
    info = prepare(
        [folder], folder / "data", seq_len=64, validation=0.3, samples_per_shard=8, workers=1, progress=False
    )
    assert set(info.splits) == {"train", "validation"}
    return folder / "data", (folder / "data" / "dataset.json").read_bytes(), info


def check_info(prepared, content):
    """Load, compare, inspect and verify with a `dataset.json`; what is let through must be right."""
    directory, _, expected = prepared
    (directory / "dataset.json").write_bytes(content)
    with cpu_limit():
        try:
            info = DatasetInfo.load(directory)
            for split in info.splits:
                index = DatasetIndex.open(directory, f"{split}/*.tar", progress=False)
                check_against_info(index, str(directory), f"{split}/*.tar", info)
            inspect(directory, progress=False)
            verify(directory, workers=1, progress=False)
        except DataError as error:
            check_message(error)
            return
    for split, size in expected.splits.items():
        # no bytes of text: the input was tokens
        assert info.splits[split] in (size, replace(size, bytes=0))
    assert info.splits.keys() == expected.splits.keys()
    assert (info.vocabulary_size, info.end_token, info.field) == (257, 256, "tokens.npy")


@given(data=st.data())
@fuzz(100)
def test_another_value_is_refused_or_right(prepared, data):
    content = json.loads(prepared[1])
    target = data.draw(st.sampled_from([content, content["splits"], *content["splits"].values(), content["skipped"]]))
    key = data.draw(st.sampled_from([*target, "more"]))
    if data.draw(st.booleans()):
        target[key] = data.draw(st.sampled_from(VALUES))
    else:
        target.pop(key, None)
    check_info(prepared, json.dumps(content).encode())


@given(changed=st.data())
@fuzz(60)
def test_other_bytes_are_refused_or_right(prepared, changed):
    def insert_bad(content, where, bad):
        where %= len(content)
        return content[:where] + bad + content[where:]

    kinds = [*any_mutation, mutation(insert_bad, place, st.sampled_from(BAD_UTF_8))]
    check_info(prepared, changed.draw(mutations(*kinds)(st.just(prepared[1]))))


@pytest.mark.parametrize("bad", BAD_UTF_8[:4])
def test_bytes_that_are_not_utf_8_are_one_line_that_names_the_file(prepared, tmp_path, bad):
    path = tmp_path / "dataset.json"
    path.write_bytes(prepared[1].replace(b'"byte"', b'"by' + bad + b'"'))
    for read in (DatasetInfo.load, lambda directory: DatasetInfo.find(str(directory), {})):
        with refused(DataError, path):
            read(tmp_path)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("what", ["documents", "bytes"])
@pytest.mark.parametrize("change", [-1, 1, 5000])
def test_documents_and_bytes_are_compared_with_the_tokens(prepared, tmp_path, split, what, change):
    shutil.copytree(prepared[0], tmp_path / "data")
    content = json.loads(prepared[1])
    content["splits"][split][what] += change
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    with refused(DataError, tmp_path / "data" / "dataset.json", split, what):
        verify(tmp_path / "data", workers=1, progress=False)
