import dataclasses
import json
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest
import webdataset

from nar_scale.data import ByteTokenizer, DatasetIndex, DatasetInfo, SplitInfo, prepare, train_tokenizer, verify
from nar_scale.errors import DataError, UserError
from tests.data.shard_files import index_file, write_samples
from tests.errors import assert_names, refused

SAMPLES = [np.array(row, dtype=np.uint16) for row in ([1, 2, 3], [3], [3, 3, 9, 0], [1, 1], [5, 3, 3, 3])]


def write_shards(directory, split="train", samples=SAMPLES, cuts=(0, 2, 5), **members):
    """Write samples as shards, sample i with member i of each of the lists `members`."""
    (directory / split).mkdir(parents=True, exist_ok=True)
    for number, (start, end) in enumerate(pairwise(cuts)):
        with webdataset.TarWriter(str(directory / split / f"shard-{number:06d}.tar"), mtime=0) as writer:
            for i in range(start, end):
                extra = {name.replace("__", "."): content[i] for name, content in members.items()}
                writer.write({"__key__": f"key{i}", "tokens.npy": samples[i], **extra})


def sizes(samples=SAMPLES, shards=2):
    return SplitInfo(documents=1, samples=len(samples), tokens=sum(map(len, samples)), bytes=0, shards=shards)


def write_info(directory, **changes):
    info = DatasetInfo(
        tokenizer=None,
        vocabulary_size=10,
        end_token=None,
        seq_len=4,
        field="tokens.npy",
        splits={"train": sizes()},
        skipped={},
    )
    info = dataclasses.replace(info, **changes)
    info.save(directory)
    return info


def checked(directory, **options):
    return verify(directory, workers=1, progress=False, **options)


def refusal(directory, **options):
    with pytest.raises(DataError) as error:
        checked(directory, **options)
    message = str(error.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message


def test_numbers_of_a_split(tmp_path):
    write_shards(tmp_path)
    write_info(tmp_path)
    DatasetIndex.open(tmp_path, "train/*.tar", progress=False)
    result = checked(tmp_path)
    split = result.splits["train"]
    assert (split.shards, split.samples, split.tokens, split.shortest, split.longest) == (2, 5, 14, 1, 4)
    assert split.mean_length == pytest.approx(2.8)
    assert split.histogram.dtype == np.int64
    assert split.histogram.tolist() == [1, 3, 1, 7, 0, 1, 0, 0, 0, 1]
    assert split.different_tokens == 6
    shares = np.array([1, 3, 1, 7, 1, 1]) / 14
    assert split.entropy == pytest.approx(-(shares * np.log2(shares)).sum())
    digests = [blake2b(sample.astype("<i8").tobytes(), digest_size=16).digest() for sample in SAMPLES]
    assert split.checksum == blake2b(b"".join(digests), digest_size=16).hexdigest()
    assert split.classes is None
    lines = [" ".join(line.split()) for line in str(result).splitlines()]
    assert lines[1] == "all shards have the digests in their indices"
    assert "lengths 1 to 4, 2.8 on average, 4 allowed" in lines
    assert "unused 4 tokens: 4, 6-8" in lines
    assert "used 6 of 10 tokens" in lines
    assert lines[-6:-4] == ["3 50.00%", "1 21.43%"]
    assert f"checksum {split.checksum}" in lines


def test_checksum_does_not_depend_on_shards_types_and_workers(tmp_path):
    checksums = set()
    for name, cuts, dtype, workers in [
        ("a", (0, 2, 5), "<u2", 1),
        ("b", (0, 1, 2, 4, 5), "<i8", 1),
        ("c", (0, 3, 5), ">i4", 2),
    ]:
        write_shards(tmp_path / name, samples=[sample.astype(dtype) for sample in SAMPLES], cuts=cuts)
        write_info(tmp_path / name, splits={"train": sizes(shards=len(cuts) - 1)})
        result = verify(tmp_path / name, workers=workers, progress=False)
        assert result.splits["train"].histogram.sum() == 14
        checksums.add(result.splits["train"].checksum)
    assert len(checksums) == 1
    moved = [np.concatenate(SAMPLES)[:4], *SAMPLES[2:], np.array([3])]  # other borders, other samples
    write_shards(tmp_path / "d", samples=moved, cuts=(0, 5))
    write_info(tmp_path / "d", splits={"train": sizes(moved, shards=1)})
    assert checked(tmp_path / "d").splits["train"].checksum not in checksums


def test_what_prepare_writes_is_whole(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}, nothing else. " * (i + 1))
    output = tmp_path / "set"
    arguments = {"seq_len": 64, "validation": 0.3, "samples_per_shard": 50, "workers": 1, "progress": False}
    info = prepare(sorted(tmp_path.glob("*.txt")), output, document_ids=True, **arguments)
    before = sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*"))
    result = checked(output)
    assert sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*")) == before
    assert result.splits.keys() == info.splits.keys() == {"train", "validation"}
    assert result.splits["train"].histogram[ByteTokenizer.end_token] == info.splits["train"].documents
    report = str(result)
    assert "all shards have the digests" in report
    assert "' '" in report
    assert "\nvalidation\n" in report


def test_the_end_token_and_control_characters_are_spelled(tmp_path):
    samples = [np.array([27, 27, 256, 10], dtype=np.uint16)]
    write_shards(tmp_path, samples=samples, cuts=(0, 1))
    write_info(tmp_path, tokenizer="byte", vocabulary_size=257, end_token=256, splits={"train": sizes(samples, 1)})
    report = str(checked(tmp_path))
    assert "\x1b" not in report
    assert " 27  50.00%  '\\x1b'" in report
    assert "256  25.00%  '<|end|>'" in report
    assert "1 of 1 shards had no index" in report


def test_a_changed_token_is_found(tmp_path):
    write_shards(tmp_path)
    write_info(tmp_path)
    DatasetIndex.open(tmp_path, "train/*.tar", progress=False)
    shard = tmp_path / "train" / "shard-000001.tar"
    whole, content = shard.read_bytes(), bytearray(shard.read_bytes())
    place = content.index(np.array([3, 3, 9, 0], dtype=np.uint16).tobytes())
    content[place] = 4
    shard.write_bytes(content)
    assert f"shard {shard} changed since its index was built (same size, other content)" in refusal(tmp_path)
    shard.write_bytes(whole[:-512])
    assert "bytes then" in refusal(tmp_path)
    shard.write_bytes(whole)
    assert checked(tmp_path).splits["train"].samples == 5  # another mtime is no harm


def test_indices_are_looked_for_in_both_places(tmp_path):
    write_shards(tmp_path / "set")
    write_info(tmp_path / "set")
    elsewhere = tmp_path / "indices"
    assert checked(tmp_path / "set").splits["train"].without_index == 2
    DatasetIndex.open(tmp_path / "set", "train/*.tar", index_directory=elsewhere, progress=False)
    assert checked(tmp_path / "set").splits["train"].without_index == 2
    assert checked(tmp_path / "set", index_directory=elsewhere).splits["train"].without_index == 0
    write_shards(tmp_path / "set", samples=[sample + 1 for sample in SAMPLES])
    assert str(elsewhere) in refusal(tmp_path / "set", index_directory=elsewhere)


def test_an_index_that_leads_elsewhere_is_found(tmp_path):
    write_shards(tmp_path)
    write_info(tmp_path)
    DatasetIndex.open(tmp_path, "train/*.tar", progress=False)
    index = tmp_path / "train" / "shard-000000.tar.index"
    line, records = index.read_bytes().split(b"\n", 1)
    index.write_bytes(index_file(json.loads(line), records.replace(b"key1", b"key7")))
    assert_names(refusal(tmp_path), index)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.array([1, 10], dtype=np.uint16), ("token 10", 10)),
        (np.array([-1], dtype=np.int16), ("token -1", 10)),
        (np.arange(5), (5, 4)),
        (np.array([], dtype=np.uint16), ("no token",)),
        (np.array([0.5]), ("float64",)),
        (np.zeros((1, 2), dtype=np.uint8), ("(1, 2)",)),
        (b"no array", ("'tokens.npy'",)),
    ],
)
def test_bad_samples_are_named(tmp_path, bad, named):
    write_shards(tmp_path, samples=[*SAMPLES[:3], bad, SAMPLES[4]])
    write_info(tmp_path)
    assert_names(refusal(tmp_path), tmp_path / "train" / "shard-000001.tar", "sample key3", *named)


def test_counts_must_agree(tmp_path):
    write_shards(tmp_path)
    for what, said in [("samples", 6), ("tokens", 13), ("shards", 3)]:
        write_info(tmp_path, splits={"train": dataclasses.replace(sizes(), **{what: said})})
        assert_names(refusal(tmp_path), "dataset.json", "train", f"{said} {what}")
    write_info(tmp_path, splits={"train": sizes(), "validation": sizes()})
    assert_names(refusal(tmp_path), "dataset.json", "validation", 2, 0)
    write_info(tmp_path)
    write_shards(tmp_path, "validation")
    assert_names(refusal(tmp_path), "dataset.json", "validation", 0, 2)


def test_damaged_dataset_json(tmp_path):
    write_shards(tmp_path)
    assert_names(refusal(tmp_path), tmp_path / "dataset.json")
    write_info(tmp_path)
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text())
    for changes in [
        {"vocabulary_size": "many"},
        {"seq_len": 0},
        {"splits": {}},
        {"splits": {"\x1b[2Jtrain": dict(content["splits"]["train"], tokens=None)}},
    ]:
        path.write_text(json.dumps({**content, **changes}))
        assert_names(refusal(tmp_path), tmp_path / "dataset.json")
    write_info(tmp_path, tokenizer="byte")
    assert_names(refusal(tmp_path), tmp_path / "dataset.json", 10, "None", "'byte'", 257)


def test_classes(tmp_path):
    write_shards(tmp_path, cls=[3, 0, 2, 1, 1])
    write_info(tmp_path, num_classes=4)
    result = checked(tmp_path)
    assert result.splits["train"].classes == (0, 3)
    assert "classes   0 to 3" in str(result)
    write_info(tmp_path, num_classes=3)
    assert_names(refusal(tmp_path), "sample key0", "class 3", "0..2")
    write_shards(tmp_path)
    assert_names(refusal(tmp_path), "sample key0", "'cls'")


def test_all_shards_or_none_have_classes(tmp_path):
    write_shards(tmp_path, cls=[0, 0, 1, 1, 1])
    write_samples(tmp_path / "train" / "shard-000000.tar", SAMPLES[:2])
    write_info(tmp_path)
    assert_names(refusal(tmp_path), tmp_path / "train" / "shard-000001.tar", "'cls'")


def test_documents(tmp_path):
    documents = [np.zeros(len(sample), dtype=np.uint8) for sample in SAMPLES]
    write_shards(tmp_path, documents__npy=documents)
    write_info(tmp_path, document_field="documents.npy")
    checked(tmp_path)
    for bad, named in [(np.zeros(3, dtype=np.uint8), (3, 4)), (np.array([1, 1, 0, 0]), ())]:
        write_shards(tmp_path, documents__npy=[*documents[:2], bad, *documents[3:]])
        assert_names(refusal(tmp_path), "sample key2", "'documents.npy'", *named)
    write_shards(tmp_path)
    assert_names(refusal(tmp_path), "sample key0", "'documents.npy'")


def test_damaged_shards_and_hostile_names(tmp_path):
    write_shards(tmp_path)
    write_info(tmp_path)
    shard = tmp_path / "train" / "shard-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700])
    assert_names(refusal(tmp_path), shard)
    shard.write_bytes(whole)
    hostile = tmp_path / "train" / "shard-\x1b[2J.tar"
    with webdataset.TarWriter(str(hostile)) as writer:
        writer.write({"__key__": "\x1b[31mkey", "tokens.npy": np.array([77])})
    write_info(tmp_path, splits={"train": dataclasses.replace(sizes(), shards=3)})
    assert "shard-\\x1b[2J.tar, sample \\x1b[31mkey: token 77" in refusal(tmp_path)


def test_workers_find_the_same_fault(tmp_path):
    write_shards(tmp_path, samples=[*SAMPLES[:4], np.array([11])])
    write_info(tmp_path)
    with refused(DataError, "sample key4", "token 11"):
        verify(tmp_path, workers=2, progress=False)
    with refused(UserError, "workers", 0):
        verify(tmp_path, workers=0)


def test_bytes_are_compared_with_the_texts_of_the_tokens(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}, nothing else. " * (i + 1))
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(sorted(tmp_path.glob("*.txt")), 300, tokenizer, progress=False)
    output = tmp_path / "set"
    arguments = {"seq_len": 64, "validation": 0.3, "workers": 1, "progress": False, "tokenizer": str(tokenizer)}
    prepare(sorted(tmp_path.glob("*.txt")), output, **arguments)
    assert checked(output).splits["train"].tokens
    content = json.loads((output / "dataset.json").read_text())
    right = content["splits"]["validation"]
    for wrong in ({"bytes": 1}, {"bytes": right["bytes"] * 40}, {"documents": right["documents"] + 1}):
        changed = {**content, "splits": {**content["splits"], "validation": {**right, **wrong}}}
        (output / "dataset.json").write_text(json.dumps(changed))
        assert_names(refusal(output), output / "dataset.json", "validation", *wrong)
