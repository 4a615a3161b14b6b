import io
import os
import pickle
import tarfile
from functools import partial

import numpy as np
import webdataset

from nar_scale.data import DatasetInfo, SplitInfo, inspect, prepare
from nar_scale.data.inspection.summary import MAX_LINE_LETTERS
from nar_scale.errors import DataError, UserError
from tests.data.shard_files import npy, write_samples
from tests.errors import refused


def lines_of(directory, **options):
    report = inspect(directory, progress=False, **options)
    for line in report.split("\n"):
        assert line.isprintable()
        assert len(line) <= MAX_LINE_LETTERS + len(" ...")
    return [" ".join(line.split()) for line in report.split("\n")]


def after(lines, start, number=1):
    """Return the lines that follow the one that is `start`."""
    place = lines.index(start)
    return lines[place + 1 : place + 1 + number]


def npy_header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def write_members(shard, members):
    """Write members as they are, whatever their names."""
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_a_prepared_set(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}\x1b[2J, nothing else. " * 9)
    output = tmp_path / "set"
    prepare(
        sorted(tmp_path.glob("*.txt")),
        output,
        seq_len=64,
        validation=0.3,
        document_ids=True,
        samples_per_shard=40,
        workers=1,
        progress=False,
    )
    info = DatasetInfo.load(output)
    lines = lines_of(output)
    assert lines[0].startswith(f"{output}: dataset.json says tokenizer byte, vocabulary 257, end token 256")
    train = info.splits["train"]
    assert f"train: documents {train.documents}, samples {train.samples}, tokens {train.tokens:,}" in lines[1]
    assert after(lines, "train/*.tar")[0].startswith(f"{train.shards} shards, {train.samples} samples, ")
    assert "validation/*.tar" in lines
    sample = lines[lines.index(f"sample 0: shard {output}/train/shard-000000.tar, sample 000000-0000000") :]
    assert sample[1:3] == ["documents.npy: uint8 [64]", "1 document"]
    assert sample[4] == "tokens.npy: uint16 [64]"
    numbers = sample[5].split()
    assert numbers[:4] == [str(letter) for letter in b"Text"]
    assert numbers[32:] == ["...", "32", "more"]
    assert sample[6].startswith("Text")
    assert "\\x1b[2J, nothing else." in sample[6]


def test_images_are_printed_as_numbers(tmp_path):
    (tmp_path / "train").mkdir()
    rows = np.arange(90, dtype=np.uint8).reshape(10, 9)
    with webdataset.TarWriter(str(tmp_path / "train" / "shard-0.tar")) as writer:
        for i, row in enumerate(rows):
            writer.write({"__key__": str(i), "tokens.npy": row, "cls": i % 3})
    DatasetInfo(None, 90, None, 9, "tokens.npy", {"train": SplitInfo(10, 10, 90, 0, 1)}, {}, num_classes=3).save(
        tmp_path
    )
    lines = lines_of(tmp_path, sample=2)
    assert "3 classes" in lines[0]
    assert after(lines, "cls: in all samples, 1 byte") == ["classes 0 to 2, 3 different"]
    assert "uint8 [9], values 0 to 89" in lines
    assert "lengths 9 to 9, median 9" in lines
    assert "cls: 2" in lines
    assert after(lines, "tokens.npy: uint8 [9]", 3) == ["18 19 20", "21 22 23", "24 25 26"]


def test_foreign_shards_with_many_fields(tmp_path):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"part-{shard}.tar")) as writer:
            for i in range(3):
                sample = {
                    "__key__": f"folder/{shard}-{i}",
                    "jpg": b"\xff\xd8\xff" + bytes(i),
                    "txt": "first line\nsecond " + "x" * 600,
                    "json": {"caption": "ä\x1b[2J", "numbers": [1, 2]},
                    "ids.npy": np.arange(3 * shard + i + 1),
                    "label.npy": np.array(shard),
                    "embedding.npy": np.full((2, i + 2), i - 0.5, dtype=np.float16),
                }
                if shard == 1:
                    sample["cls"] = i + 7
                writer.write(sample)
    lines = lines_of(tmp_path, sample=4)
    assert lines[0] == f"{tmp_path}: no dataset.json"
    assert lines[1] == "**/*.tar"
    assert lines[2].startswith("2 shards, 6 samples, ")
    assert " 6 samples" in lines[3]
    assert "jpg: in all samples, 3 to 5 bytes" in lines
    assert after(lines, "cls: in 3 samples, 1 byte") == ["classes 7 to 9, 3 different"]
    assert "float16 [2, 2..4], values -0.5 to 1.5" in lines
    assert after(lines, "int64 [1..6], values 0 to 5") == ["lengths 1 to 6, median 3.5"]
    assert "int64 [], values 0 to 1" in lines
    assert f"sample 4: shard {tmp_path}/part-1.tar, sample folder/1-1" in lines
    assert after(lines, "ids.npy: int64 [5]") == ["0 1 2 3 4"]
    assert "jpg: 4 bytes" in lines
    assert "cls: 8" in lines
    shown = after(lines, "txt:", 2)
    assert shown[0] == "first line"
    assert shown[1].startswith("second xxx")
    assert shown[1].endswith("x ...")
    assert sum(map(len, shown)) < 520
    assert after(lines, "json:", 3) == ["{", '"caption": "ä\\u001b[2J",', '"numbers": [']


def test_only_some_samples_are_looked_at(tmp_path):
    write_samples(tmp_path / "a.tar", [np.array([i], dtype=np.int32) for i in range(600)])
    lines = lines_of(tmp_path)
    assert " 256 samples" in lines[3]
    assert "int32 [1], values 0 to 599" in lines


def test_hostile_names_and_contents(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    objects = npy(np.array([Bomb()], dtype=object))
    deep = b"[" * 100_000
    members = [
        ("\x1b[31mkey\r.\x1b]0;title\x07.txt", "left\u202eright\r\x1b[2J\ttab".encode()),
        ("\x1b[31mkey\r.object.npy", objects),
        ("\x1b[31mkey\r.pickle", pickle.dumps(Bomb())),
        ("\x1b[31mkey\r.pyd", pickle.dumps(Bomb(), protocol=0)),
        ("\x1b[31mkey\r.json", deep),
        ("\x1b[31mkey\r.cut.npy", npy(np.arange(9))[:-1]),
        ("\x1b[31mkey\r.no.npy", b"no array"),
        ("\x1b[31mkey\r.huge.npy", npy_header((0, 10**20))),
        ("\x1b[31mkey\r.names.npy", npy(np.zeros(2, dtype=[("\x1b[2J" * 50, "i4"), ("b", "f8")]))),
        ("\x1b[31mkey\r.letters.npy", npy(np.array(["\x1b[2J" * 5000]))),
        ("\x1b[31mkey\r.nan.npy", npy(np.array([np.nan, np.inf, 2.5]))),
        ("\x1b[31mkey\r.cls", b"\x1b[2J"),
        ("\x1b[31mkey\r.bin", b"\0\1\2"),
        ("\x1b[31mkey\r.empty", b""),
    ]
    write_members(tmp_path / "\x1b[2Jshard.tar", members)
    lines = lines_of(tmp_path)
    assert not (tmp_path / "exploded").exists()
    text = "\n".join(lines)
    assert "sample \\x1b[31mkey\\x0d" in text
    assert "\\x1b]0;title\\x07.txt: left\\x202eright\\x0d\\x1b[2J\\x09tab" in text
    assert "object.npy: cannot be read: it holds pickled Python objects, which are not read" in text
    assert sum("what is pickled can run commands" in line for line in lines) == 2
    assert "cut.npy: cannot be read" in text
    assert "huge.npy: cannot be read" in text
    assert "1 cannot be read, the first because it is not a .npy file" in text
    assert "float64 [3], values 2.5 to 2.5" in text
    assert "json: cannot be read" in text
    assert "bin: 3 bytes" in lines
    assert "empty:" in lines


def test_samples_that_lack_fields_or_have_them_twice(tmp_path):
    members = [("a.txt", b"1"), ("a.txt", b"2"), ("b.txt", b"3"), ("b.md", b"4"), ("c.md", b"55")]
    write_members(tmp_path / "a.tar", members)
    lines = lines_of(tmp_path, sample=0)
    assert "txt: in 1 sample, twice in 1 sample, 1 byte" in lines
    assert "md: in 2 samples, 1 to 2 bytes" in lines
    assert lines[-1].startswith("sample 0: ")


def test_damaged_shards_are_told(tmp_path):
    write_samples(tmp_path / "a.tar", [np.arange(4)] * 3)
    write_samples(tmp_path / "b.tar", [np.arange(4)] * 3)
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[:2000])
    lines = lines_of(tmp_path)
    assert "2 shards, 4 samples" in lines[2]
    assert lines[3].startswith(f"damaged: shard {tmp_path}/b.tar is truncated")
    (tmp_path / "a.tar").unlink()
    (tmp_path / "b.tar").write_bytes(b"\x1b[2J no tar" * 100)
    with refused(DataError, "b.tar") as error:
        inspect(tmp_path, progress=False)
    assert str(error.value).isprintable()


def test_damaged_dataset_json_does_not_keep_from_looking(tmp_path):
    write_samples(tmp_path / "a.tar", [np.arange(4)])
    (tmp_path / "dataset.json").write_text('{"\x1b[2J": 1}')
    lines = lines_of(tmp_path)
    assert "is damaged" in lines[0]
    assert after(lines, "tokens.npy: int64 [4]") == ["0 1 2 3"]
    DatasetInfo("tokenizer.json", 4, 0, 4, "tokens.npy", {"train": SplitInfo(1, 1, 4, 0, 1)}, {}).save(tmp_path)
    lines = lines_of(tmp_path)
    assert "tokenizer.json" in lines[2]
    assert after(lines, "tokens.npy: int64 [4]") == ["0 1 2 3"]


def test_patterns_and_samples(tmp_path):
    for split, number in [("train", 5), ("validation", 2), ("test", 3)]:
        (tmp_path / split).mkdir()
        write_samples(tmp_path / split / "a.tar", [np.array([i, 7]) for i in range(number)])
    assert [line for line in lines_of(tmp_path) if line.endswith("/*.tar")] == ["train/*.tar", "validation/*.tar"]
    lines = lines_of(tmp_path, sample=3)
    assert "sample 3: there are only 2" in lines
    assert after(lines, "tokens.npy: int64 [2]") == ["3 7"]
    for pattern, samples in [("test/*.tar", 3), ("**/*.tar", 10), (["test/*.tar", "train/a.tar"], 3)]:
        lines = lines_of(tmp_path, pattern=pattern)
        assert f"1 shard, {samples} samples" in lines[2] or f"3 shards, {samples} samples" in lines[2]
    for number in (-1, 5):
        with refused(UserError, number, 0, 4):
            inspect(tmp_path, sample=number, progress=False)


def test_no_shards(tmp_path):
    with refused(DataError, tmp_path, "**/*.tar"):
        inspect(tmp_path, progress=False)
    with refused(DataError, tmp_path / "lost"):
        inspect(tmp_path / "lost", progress=False)
    (tmp_path / "a.tar").write_bytes(b"")
    for look in (inspect, partial(DatasetInfo.find, storage_options={})):
        with refused(DataError, tmp_path / "a.tar"):
            look(str(tmp_path / "a.tar"))
    with refused(DataError, tmp_path) as error:
        inspect(tmp_path, pattern="\x1b[2J*.tar", progress=False)
    assert str(error.value).isprintable()


def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_samples(folder / "a.tar", [np.arange(4)] * 3)
    folder.chmod(0o555)
    try:
        assert "1 shard, 3 samples" in lines_of(folder, index_directory=tmp_path / "indices")[2]
        assert [path.name for path in folder.iterdir()] == ["a.tar"]
        assert len(list((tmp_path / "indices").iterdir())) == 1
        if os.geteuid() != 0:  # root may write everywhere
            with refused(DataError, folder, "--index-directory"):
                inspect(folder, progress=False)
    finally:
        folder.chmod(0o755)


def test_nothing_is_left_in_the_folder(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "0", "txt": "hello"})
    before = sorted(path.name for path in tmp_path.iterdir())
    assert "hello" in inspect(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
