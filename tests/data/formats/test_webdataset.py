import gzip
import io
import tarfile

import numpy as np
import pytest
import webdataset

from nar_scale.data.formats.documents import SkippedDocument
from nar_scale.data.formats.inputs import split_into_pieces
from tests.data.formats.reading import assert_refused, memory_peak, read, reasons, texts, tokens, write
from tests.data.formats.tars import npy
from tests.data.shard_files import write_tar


def test_the_text_of_samples(tmp_path):
    file = write_tar(
        tmp_path / "a.TAR",
        [
            ("a/0.json", b'{"text": "not this"}'),
            ("a/0.txt", "first ä".encode()),
            ("a/0.jpg", b"\0"),
            ("1.text", b"second"),
            ("2.json", b'{"text": "third", "id": 1}'),
            ("LICENSE", b"no sample"),
            ("3.txt", b""),
            ("4.txt", b"a\0b"),
            ("5.jpg", b"\0"),
            ("6.tokens.npy", npy(np.array([1, 2], dtype=np.uint16))),
        ],
    )
    assert len(split_into_pieces(file, 1)) == 1
    sources = read(file)
    assert texts(sources) == ["first ä".encode(), b"second", b"third", None]
    assert [source[1:] for source in sources if isinstance(source, SkippedDocument)] == [
        ("file that is in no sample", "LICENSE"),
        ("empty", "3"),
        ("binary", "4"),
        ("no text", "5"),
    ]
    assert sources[-1].tokens.tolist() == [1, 2]
    end = file.read_bytes().rstrip(b"\0")
    assert 0 <= sum(source.size for source in sources) - len(end) < 512


def test_another_field_of_samples(tmp_path):
    file = write_tar(
        tmp_path / "a.tar",
        [("0.txt", b"text"), ("0.caption.txt", b"one"), ("1.json", b'{"caption.txt": "two"}'), ("1.x", b"")],
    )
    assert texts(read(file, text_field="caption.txt")) == [b"one", b"two"]
    assert texts(read(file, text_field="txt")) == [b"text"]
    assert reasons(read(file, text_field="txt")) == ["no text"]
    assert_refused(file, "sample '1', field 'json'", "no key 'text', only 'caption.txt'", text_field="json")
    assert_refused(
        file, "no sample with a field 'codes.npy', only 'txt', 'caption.txt', 'json'", text_field="codes.npy"
    )


def test_tokens_with_classes_in_a_shard_of_webdataset(tmp_path):
    rows = np.arange(50, dtype=np.uint16)
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, label in enumerate([3, 1, 4, 1]):
            sample = rows[16 * number : 16 * number + 16]
            writer.write({"__key__": f"{number:09d}", "cls": label, "tokens.npy": sample})
    sources = read(tmp_path / "a.tar")
    assert np.concatenate([source.tokens for source in sources]).tolist() == rows.tolist()
    assert [source.label for source in sources] == [3, 1, 4, 1]
    assert [len(source.tokens) for source in sources] == [16, 16, 16, 2]


def test_token_fields_of_samples(tmp_path):
    images = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    file = write_tar(
        tmp_path / "a.tar",
        [("0.codes.npy", npy(images[0])), ("1.codes.npy", npy(images[1])), ("2.codes.npy", npy(np.zeros(0, int)))],
    )
    sources = read(file, text_field="codes.npy")
    assert tokens(sources) == [list(range(12)), list(range(12, 24))]
    assert reasons(sources) == ["empty"]
    assert sources[0].label is None


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("0.txt", b"a"), ("0.txt", b"b")], "sample '0', field 'txt' occurs 2 times"),
        ([("0.json", b"{")], "sample '0', field 'json': not valid JSON"),
        ([("0.jpg", b"a"), ("1.cls", b"1")], "no sample with a field 'txt' or 'text'"),
        ([("0.tokens.npy", npy(np.zeros(3)))], "float64, not integer tokens"),
        ([("0.tokens.npy", npy(np.array(3)))], "a single number"),
        ([("0.tokens.npy", npy(np.array([-3])))], "token -3 is negative"),
        ([("0.tokens.npy", npy(np.array([{}])))], "pickled"),
        ([("0.tokens.npy", npy(np.arange(9))[:-1])], "ends in the middle"),
        ([("0.tokens.npy", b"tokens")], "not a .npy file"),
        ([("0.cls", b"cat"), ("0.tokens.npy", npy(np.arange(9)))], "class b'cat' is not an integer"),
        ([("0.cls", b"-1"), ("0.tokens.npy", npy(np.arange(9)))], "class b'-1' is not an integer"),
    ],
)
def test_malformed_samples_are_refused(tmp_path, members, reason):
    assert_refused(write_tar(tmp_path / "a.tar", members), reason)


def test_a_damaged_tar_is_refused(tmp_path):
    file = write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"text" * 300) for i in range(4)])
    content = file.read_bytes()
    ends = [0, 1, 511, 512, 700, 1712, 2047, 2048, 4000, 4096, 8191, 8192]
    assert content.rstrip(b"\0")[-1:] == b"t"
    for end in ends:
        assert_refused(write(file, content[:end]), "truncated, damaged")
    for position in (100, 2048 + 150):
        damaged = bytearray(content)
        damaged[position] ^= 1
        assert_refused(write(file, damaged), "truncated, damaged")
    assert_refused(write(file, gzip.compress(content)), "not an uncompressed tar")
    assert texts(read(write(file, content[: 8192 + 512]))) == [b"text" * 300] * 4


def test_an_empty_tar_holds_nothing(tmp_path):
    assert read(write_tar(tmp_path / "a.tar", [])) == []


def test_nothing_of_a_tar_is_extracted_or_followed(tmp_path):
    secret = write(tmp_path / "secret", b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("0.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        outside = tarfile.TarInfo("../../outside/1.txt")
        outside.size = 1
        tar.addfile(outside, io.BytesIO(b"a"))
    sources = read(tmp_path / "a.tar")
    assert sources[0] == SkippedDocument(0, "symbolic link", "0.txt")
    assert texts(sources) == [b"a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "secret"]


def test_members_that_are_lost_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind, content in [
            ("0.txt", tarfile.REGTYPE, b"first"),
            ("0.cls", tarfile.LNKTYPE, b""),
            ("folder", tarfile.DIRTYPE, b""),
            ("1.txt", tarfile.REGTYPE, b"second"),
            ("1.x", b"V", b"volume"),
            ("pipe", tarfile.FIFOTYPE, b""),
            ("README", tarfile.REGTYPE, b"no sample"),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content)
            tar.addfile(member, io.BytesIO(content))
    sources = read(tmp_path / "a.tar")
    assert texts(sources) == [b"first", b"second"]
    assert {source.name: source.reason for source in sources if isinstance(source, SkippedDocument)} == {
        "0.cls": "hard link",
        "1.x": "member of an unknown kind",
        "pipe": "pipe",
        "README": "file that is in no sample",
    }


def test_a_tar_is_streamed(tmp_path):
    file = write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"a" * 20_000) for i in range(1500)])
    peak, documents = memory_peak(file)
    assert documents == 1500
    assert peak < 2_000_000  # of 30 MB
