"""Requests of any number: read when they are due, the same as when all are read at once."""

import io
import json
import os
import random
import tarfile

import pytest

from nar_scale.errors import UserError
from nar_scale.generation import Request, SamplesFromScratch, SamplingOptions, generate, open_requests, read_requests
from nar_scale.generation.requests import RequestList, prompt_file
from tests.errors import refused
from tests.generation.helpers import export


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_a_file_in_pieces_is_the_file_as_a_whole(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(prompt_file, "_CHUNK_BYTES", chunk)
    draw, path = random.Random(chunk), tmp_path / "p.jsonl"
    blank = [b"", b" \t\r", b"\xef\xbb\xbf", b"\xef\xbb\xbf  ", b"\x0b\x0c", b"\xc2\xa0", b"\x85"]
    lines = [b'{"prompt": "%d"}' % number for number in range(40)] + [b"bad", b"\xff", b'  {"prompt": "indented"}\r']
    for ending in (b"", b"\n", b"\n\n \n"):
        path.write_bytes(b"\n".join(draw.choice(draw.choice((lines, blank))) for _ in range(200)) + ending)
        everything, source = read_requests(path), open_requests(path)
        assert source.count == len(everything) > 50
        assert source.read(0, source.count + 5) == everything
        for _ in range(30):
            start, stop = sorted(draw.randrange(source.count + 1) for _ in range(2))
            assert source.read(start, stop) == everything[start:stop]


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    source = open_requests(path)
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    with refused(UserError, path, "changed"):
        source.read(0, 1)
    assert open_requests(path).digest != source.digest


def test_a_pipe_is_read_at_once():
    reading, writing = os.pipe()
    os.write(writing, b'{"prompt": "a"}\n{"prompt": "b"}')
    os.close(writing)
    source = open_requests(f"/dev/fd/{reading}")
    os.close(reading)
    assert [request.prompt for request in source.read(0, 2)] == ["a", "b"]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def test_shards_of_prompts(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    first = [(f"{number:03d}.txt", f"prompt {number}".encode()) for number in range(5)]
    write_tar(shards / "a.tar", first)
    second = [
        ("x.json", b'{"text": "a<mask:2>", "id": "mine"}'),
        ("x.png", b"another field"),
        ("y.txt", b"with a class"),
        ("y.cls", b"3"),
        ("z.json", b"nonsense"),
        ("v.txt", b"\xff"),
        ("w.png", b"no prompt"),
    ]
    write_tar(shards / "b.tar", second)
    source = open_requests(shards)
    assert source.count == 9
    requests = source.read(0, 9)
    assert [request.number for request in requests] == list(range(9))
    assert [request.prompt for request in requests[:5]] == [f"prompt {number}" for number in range(5)]
    assert requests[0].id == "000"
    assert (requests[5].text, requests[5].id) == ("a<mask:2>", "mine")
    assert (requests[6].prompt, requests[6].class_id, requests[6].id) == ("with a class", 3, "y")
    assert all(request.fault for request in requests[7:])
    assert source.read(3, 7) == requests[3:7]
    assert open_requests(shards / "a.tar").read(0, 5) == [
        Request(number, f"prompt {number}", id=f"{number:03d}", file=shards / "a.tar") for number in range(5)
    ]
    (shards / "b.tar").write_bytes((shards / "b.tar").read_bytes()[:700])
    with refused(UserError, shards / "b.tar"):
        open_requests(shards)
    (tmp_path / "empty").mkdir()
    with refused(UserError, tmp_path / "empty", "directory"):
        open_requests(tmp_path / "empty")


def test_prompts_from_shards_give_what_the_same_prompts_from_a_file_give(tmp_path):
    checkpoint = export(tmp_path / "model", "autoregressive")
    prompts = ["a", "bcd", "", "ef"]
    write_tar(tmp_path / "p.tar", [(f"{number}.txt", prompt.encode()) for number, prompt in enumerate(prompts)])
    lines = [json.dumps({"prompt": prompt, "id": str(number)}) + "\n" for number, prompt in enumerate(prompts)]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    parts = []
    for name in ("p.tar", "p.jsonl"):
        parts += generate(checkpoint, tmp_path / f"{name}.out", open_requests(tmp_path / name), SamplingOptions(seed=1))
    assert len(parts) == 2
    assert parts[0].read_bytes() == parts[1].read_bytes()


def test_requests_in_memory_are_numbered_from_0():
    with refused(UserError, "numbered", 0):
        RequestList([Request(1)])
    source = SamplesFromScratch(3)
    assert source.read(1, 9) == RequestList([Request(number) for number in range(3)]).read(1, 9)
