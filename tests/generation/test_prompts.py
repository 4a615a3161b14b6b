"""Files of prompts: what is read, what is refused with its line, what is skipped, and what is left behind."""

import io
import json
import os
import random
import resource
import sys
from contextlib import contextmanager

import pytest
import torch

from nar_scale.checkpoint import describe_consolidated
from nar_scale.commands.generate import main as launch
from nar_scale.errors import UserError
from nar_scale.generation import SamplingOptions, check_requests, generate, read_requests, samples_from_scratch
from nar_scale.generation.encoding import encode_request
from tests.errors import assert_names, refused
from tests.generation.helpers import export

LINE_BREAKS = "\u2028\u2029\x85\x0b\x0c\x1c"


@pytest.fixture(scope="module")
def nar(tmp_path_factory):
    return export(tmp_path_factory.mktemp("exported") / "nar", "non_autoregressive", model={"max_seq_len": 48})


def results(output):
    return [json.loads(line) for path in sorted(output.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def run(checkpoint, output, requests, **options):
    generate(checkpoint, output, requests, SamplingOptions(steps=1, seed=3), progress=False, **options)
    return results(output)


def written(path, *lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_lines_end_at_a_line_feed_alone(nar, tmp_path):
    prompt = json.dumps({"prompt": f"a{LINE_BREAKS}b"}, ensure_ascii=False).encode()
    text = json.dumps({"text": f"{LINE_BREAKS}<mask:2>"}, ensure_ascii=False).encode()
    path = written(
        tmp_path / "p.jsonl", b"\xef\xbb\xbf" + prompt, b"", b" \t\r", text + b"\r", b"\xef\xbb\xbf" + prompt
    )
    requests = read_requests(path)
    assert [(request.number, request.line, request.fault) for request in requests] == [
        (0, 1, None),
        (1, 4, None),
        (2, 5, None),
    ]
    first, second, third = run(nar, tmp_path / "out", requests)
    assert first["prompt"] == third["prompt"] == f"a{LINE_BREAKS}b"
    assert first["generated"].startswith(f"a{LINE_BREAKS}b")
    assert second["text"] == f"{LINE_BREAKS}<mask:2>"


BAD = {
    b"nonsense": ["JSON", "character 1"],
    b"{}": ['"prompt"'],
    b"[1]": ["object", '"prompt"'],
    b"\xc2\xa0": ["JSON"],
    "\u2028".encode(): ["JSON"],
    b'{"prompt": "a", "text": "b"}': ['"text"'],
    b'{"prompt": 3}': ["'prompt'", "string"],
    b'{"class": true}': ["'class'", "integer"],
    b'{"prompt": "a", "id": [1]}': ["'id'"],
    b'{"prompt": "a \\ud83d"}': ["'prompt'", "surrogate"],
    b'{"text": "a \\udc00 <mask:2>"}': ["'text'", "surrogate"],
    b'{"prompt": "a", "id": "\\ud83d"}': ["'id'", "surrogate"],
    b'{"prompt": "\xff"}': ["byte 13", "UTF-8"],
    b'\xff\xfe{\x00"\x00': ["byte 1", "UTF-8"],
    b"[" * 200_000: ["nested"],
    b'{"id": ' + b"9" * 5000 + b"}": ["number"],
    b'{"prompt": "' + b"x" * 49 + b'"}': ["49 tokens", 48],
    b'{"text": "ab<mask:99999999999>"}': [100000000001, 48],
    b'{"text": "<mask:%s>"}' % (b"9" * 5000): ["tokens", 48],
    b'{"text": "<mask:47>ab"}': [49, 48],
    b'{"text": "no gap"}': ["'no gap'", "<mask>"],
    b'{"class": 1}': ["class 1"],
}


def test_all_bad_lines_are_named_before_anything_is_written(nar, tmp_path, monkeypatch):
    monkeypatch.setattr("nar_scale.generation.opening.load_weights", None)
    for line, named in BAD.items():
        path = written(tmp_path / "p.jsonl", b'{"prompt": "good"}', line)
        with refused(UserError, path, "line 2", *named):
            run(nar, tmp_path / "out", read_requests(path))
    path = written(tmp_path / "p.jsonl", b'{"prompt": "good"}', *BAD, b'{"prompt": "good"}', b"nonsense")
    with refused(UserError, path, "line 2", "line 3", "line 4", f"lines 5-{len(BAD) + 1}, {len(BAD) + 3}"):
        run(nar, tmp_path / "out", read_requests(path))
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_bad_line_is_skipped_by_choice(nar, tmp_path):
    good = [b'{"prompt": "good", "id": "first"}', b'{"text": "<mask:0003>x", "id": 7}', b'{"prompt": "", "id": null}']
    path = written(tmp_path / "p.jsonl", good[0], *BAD, *good[1:])
    skipped = run(nar, tmp_path / "skipped", read_requests(path), skip_faults=True, part_size=5)
    assert [result["number"] for result in skipped] == list(range(len(BAD) + 3))
    for number, (result, named) in enumerate(zip(skipped[1:], BAD.values()), 1):
        assert "tokens" not in result
        assert result["line"] == number + 1
        assert_names(result["error"], *named)
    replaced = written(tmp_path / "q.jsonl", good[0], *[b'{"prompt": ""}'] * len(BAD), *good[1:])
    whole = run(nar, tmp_path / "whole", read_requests(replaced), part_size=5)
    assert [skipped[0], *skipped[-2:]] == [whole[0], *whole[-2:]]
    assert [result.get("id") for result in (skipped[0], *skipped[-2:])] == ["first", 7, None]
    assert len(skipped[-2]["tokens"]) == 4


def test_damaged_files_of_prompts_are_read_or_their_faults_named(nar, tmp_path):
    """Bytes at random, pieces doubled and moved: no line brings generation down, and no other line changes."""
    model, path, dice = describe_consolidated(nar), tmp_path / "p.jsonl", random.Random(0)
    sound = json.dumps({"prompt": "sound", "id": "sound"}).encode()
    text = b'{"text": "a<mask:3>b", "id": 1.5, "other": [{}]}'
    faults, good = 0, 0
    for _ in range(1500):
        line = bytearray(dice.choice([dice.choice([*BAD]), sound, text]))[:300]
        for _ in range(dice.randrange(4)):
            start, end = sorted(dice.randrange(len(line) + 1) for _ in range(2))
            piece = dice.choice(
                (b"", bytes([dice.randrange(256)]), bytes(line[start:end]) * 2, b"\\ud83d", b"\xef\xbb\xbf")
            )
            line[start:end] = piece.replace(b"\n", b"\r")
        path.write_bytes(sound + b"\n" + line + b"\n" + sound)
        first, *between, last = check_requests(read_requests(path), model, 48)
        assert [(one.prompt, one.id, one.line, one.fault) for one in (first, last)] == [
            ("sound", "sound", 1, None),
            ("sound", "sound", 3, None),
        ]
        for request in between:
            json.dumps(request.as_dict(), ensure_ascii=False).encode()
            faults, good = faults + (request.fault is not None), good + (request.fault is None)
            assert request.fault is None or "\n" not in request.fault
            assert request.fault is not None or len(encode_request(request, model, 48)) <= 48
    assert min(faults, good) > 200


def test_a_corrected_file_is_taken(nar, tmp_path, capsys):
    arguments = ["--checkpoint", str(nar), "--output", str(tmp_path / "out"), "--steps", "1", "--prompts"]
    arguments.append(str(written(tmp_path / "p.jsonl", b'{"prompt": "%s", "id": 1}' % (b"x" * 49))))
    assert launch(arguments) == 2
    assert_names(capsys.readouterr().err.rstrip("\n"), tmp_path / "p.jsonl", "line 1", "--on-bad-prompt skip")
    written(tmp_path / "p.jsonl", b'{"prompt": "x", "id": 1}')
    assert launch(arguments) == 0
    assert [result["id"] for result in results(tmp_path / "out")] == [1]


def test_results_are_shown_on_any_terminal(nar, tmp_path, monkeypatch):
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding="ascii"))
    path = written(tmp_path / "p.jsonl", '{"prompt": "é\u2028\x85b"}'.encode(), b"nonsense")
    arguments = ["--checkpoint", nar, "--output", tmp_path / "é", "--prompts", path, "--steps", "1", "--print"]
    assert launch([str(one) for one in [*arguments, "--on-bad-prompt", "skip"]]) == 0
    sys.stdout.flush()
    shown = terminal.getvalue()
    assert b"\\xe9\\u2028\\x85b" in shown
    assert b"--- 1: " in shown


def test_a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one(nar, tmp_path, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ["--checkpoint", nar, "--output", tmp_path / "out", "--num-samples", "2", "--steps", "1", "--print"]
    for output, status in ((writing, 0), ("/dev/full", 2)):
        with open(output, "w") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            assert launch([str(one) for one in arguments]) == status
    assert_names(capsys.readouterr().err.rstrip("\n"), "standard output", "No space left on device")


@contextmanager
def files_of_at_most(limit):
    """A `with` block in which writing more than so many bytes to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_a_rerun_with_space_goes_on(nar, tmp_path):
    requests, output = samples_from_scratch(5), tmp_path / "out"
    whole = run(nar, tmp_path / "whole", requests, part_size=2)
    with files_of_at_most(20), refused(UserError, output, "File too large", "same command"):
        run(nar, output, requests, part_size=2)
    assert list(output.iterdir()) == []
    limit = (tmp_path / "whole" / "generation.json").stat().st_size
    assert (tmp_path / "whole" / "part-00000.jsonl").stat().st_size > limit
    with files_of_at_most(limit), refused(UserError, output / "part-00000.jsonl", "File too large", "same command"):
        run(nar, output, requests, part_size=2)
    assert [path.name for path in output.iterdir() if not path.name.startswith(".")] == ["generation.json"]
    assert run(nar, output, requests, part_size=2) == whole
    assert not list(output.glob(".*"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_record_of_the_output_is_named(nar, tmp_path, content):
    (tmp_path / "generation.json").write_bytes(content)
    with refused(UserError, tmp_path / "generation.json", "--output"):
        run(nar, tmp_path, samples_from_scratch(1))


def test_what_cannot_be_read_or_written_is_named(nar, tmp_path, capsys):
    (tmp_path / "part").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "taken" / "part-00000.jsonl").mkdir(parents=True)
    (tmp_path / "record" / "generation.json").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    scratch, show = ["--num-samples", "1"], ["--num-samples", "1", "--print"]
    table = [
        (tmp_path / "o", ["--prompts", tmp_path / "part"], [tmp_path / "part", "directory"]),
        (tmp_path / "o", ["--prompts", tmp_path / "loop"], [tmp_path / "loop"]),
        (tmp_path / "o", ["--prompts", tmp_path / "file"], [tmp_path / "file", "no prompts"]),
        (tmp_path / "o", ["--prompts", ""], ["directory"]),
        (tmp_path / "file", scratch, [tmp_path / "file"]),
        (tmp_path / "loop", scratch, [tmp_path / "loop"]),
        (tmp_path / "record", scratch, [tmp_path / "record", "directory"]),
        (tmp_path / "taken", show, [tmp_path / "taken" / "part-00000.jsonl", "directory"]),
        (tmp_path / "o", [*scratch, "--device", "gpu"], ["'gpu'", "cpu"]),
        (tmp_path / "o", [*scratch, "--device", "cuda:99"], ["'cuda:99'", "cpu"]),
        (tmp_path / "o", [*scratch, "--seed", 2**63], ["seed", 2**63]),
        (tmp_path / "o", [*scratch, "--length", 49], ["length 49", 48]),
    ]
    for output, arguments, named in table:
        common = ["--checkpoint", nar, "--output", output, "--steps", 1]
        assert launch([str(one) for one in [*common, *arguments]]) == 2, arguments
        assert_names(capsys.readouterr().err.rstrip("\n"), *named)
    assert not (tmp_path / "o").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(nar, tmp_path, capsys):
    arguments = ["--checkpoint", nar, "--output", tmp_path / "o", "--num-samples", "1", "--device", "cuda"]
    assert launch([str(one) for one in arguments]) == 2
    assert_names(capsys.readouterr().err.rstrip("\n"), "'cuda'", "cpu")
    assert not (tmp_path / "o").exists()
