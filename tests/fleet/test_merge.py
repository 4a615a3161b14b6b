"""All parts as one file, or as shards."""

import hashlib
import json
import tarfile

import pytest

from nar_scale.commands.generate import main as command
from nar_scale.errors import DataError, UserError
from nar_scale.fleet import Layout, merge
from tests.errors import refused
from tests.fleet.helpers import record, result, worker

LAYOUTS = [Layout(10, 4), Layout(10, 4, "shards")]


@pytest.fixture(params=LAYOUTS, ids=["from jsonl", "from shards"])
def finished(request, tmp_path):
    record(tmp_path / "out", request.param)
    worker(tmp_path / "out", request.param).run()
    return tmp_path / "out", request.param


def test_one_file(finished, tmp_path, capsys):
    output, _ = finished
    assert command(["--merge", str(output), "--output", str(tmp_path / "all.jsonl")]) == 0
    content = (tmp_path / "all.jsonl").read_bytes()
    assert content == b"".join(result(number) + b"\n" for number in range(10))
    manifest = json.loads((tmp_path / "all.jsonl.manifest.json").read_text())
    assert manifest["count"] == 10
    assert manifest["errors"] == 0
    (file,) = manifest["files"]
    assert file == {
        "name": "all.jsonl",
        "bytes": len(content),
        "results": 10,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    with refused(UserError, tmp_path / "all.jsonl"):
        merge(output, tmp_path / "all.jsonl")


def test_shards(finished, tmp_path):
    output, _ = finished
    manifest = merge(output, tmp_path / "shards", samples_per_shard=6)
    assert [file["results"] for file in manifest["files"]] == [6, 4]
    found = []
    for file in manifest["files"]:
        path = tmp_path / "shards" / file["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]
    assert [name for name, _ in found[:3]] == ["000000000.json", "000000000.txt", "000000000.cls"]
    assert [content for name, content in found if name.endswith("json")] == [result(number) for number in range(10)]
    assert [content.decode() for name, content in found if name.endswith("txt")] == [f"text {n}é" for n in range(10)]
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text()) == manifest


def test_webdataset_reads_the_shards(finished, tmp_path):
    import webdataset

    merge(finished[0], tmp_path / "shards")
    samples = list(webdataset.WebDataset(str(tmp_path / "shards" / "shard-00000.tar"), shardshuffle=False))
    assert [json.loads(sample["json"])["number"] for sample in samples] == list(range(10))


def test_missing_and_damaged_parts_are_named(finished, tmp_path):
    output, layout = finished
    part = output / layout.part_name(1)
    whole = part.read_bytes()
    others = [(output / layout.part_name(unit)).read_bytes() for unit in (0, 2)]
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], *others):
        part.write_bytes(damaged)
        with refused(DataError, part, "remove"):
            merge(output, tmp_path / "all.jsonl")
        assert not (tmp_path / "all.jsonl").exists()
    part.unlink()
    with refused(UserError, output, "parts 1"):
        merge(output, tmp_path / "all.jsonl")
    worker(output, layout).run()
    assert part.read_bytes() == whole
    assert merge(output, tmp_path / "all.jsonl")["count"] == 10
