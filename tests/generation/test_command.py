"""`launcher/generate.py` for whoever waits for the text."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nar_scale.commands.generate import decoding_settings, parse
from nar_scale.commands.generate import main as launch
from nar_scale.config import SAMPLERS
from nar_scale.generation import load
from tests.errors import assert_names
from tests.generation.helpers import KINDS, export

SCRIPT = Path(__file__).parents[2] / "launcher" / "generate.py"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: export(tmp_path_factory.mktemp("exported") / kind, kind) for kind in KINDS}


def arguments(checkpoint, *more):
    return ["--checkpoint", str(checkpoint), *map(str, more)]


def test_every_setting_of_every_sampler_is_an_option():
    named = {"sampler", *(name for sampler in SAMPLERS.values() for name in sampler.model_fields)}
    assert set(decoding_settings()) == named
    assert set(decoding_settings()["sampler"]["samplers"]) == set(SAMPLERS)
    values = {"sampler": "wino", "stop": "x", "remask_rule": "rescale"}
    for name, setting in decoding_settings().items():
        value = [] if setting.get("type") == "boolean" else [values.get(name, "1")]
        options = parse(arguments("x", "--num-samples", 1, f"--{name.replace('_', '-')}", *value))
        assert getattr(options, name) == (["x"] if name == "stop" else values.get(name, 1))
        assert set(setting["samplers"]) == {one for one, section in SAMPLERS.items() if name in section.model_fields}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_on_the_command_line_are_answered_on_the_terminal(checkpoints, capsys, kind):
    assert launch(arguments(checkpoints[kind], "--prompt", "ab", "--prompt", "c", "--length", 16)) == 0
    out = capsys.readouterr().out
    answers = re.findall(r"^--- (\d) \(after '(\w+)', \d+ network calls\)\n(..?)", out, re.MULTILINE)
    assert [(number, prompt) for number, prompt, _ in answers] == [("0", "ab"), ("1", "c")]
    assert all(text.startswith(prompt) for _, prompt, text in answers)


def test_gaps_of_a_prompt_are_filled_in(checkpoints, capsys):
    assert launch(arguments(checkpoints["non_autoregressive"], "--prompt", "a<mask:3>z")) == 0
    (text,) = re.findall(r"network calls\)\n(.*)\n", capsys.readouterr().out, re.DOTALL)
    assert text == load(checkpoints["non_autoregressive"]).generate("a<mask:3>z")
    assert (text[0], text[-1]) == ("a", "z")
    assert launch(arguments(checkpoints["autoregressive"], "--prompt", "a<mask:3>z")) == 2
    assert_names(capsys.readouterr().err.rstrip("\n"), "a<mask:3>z", "autoregressive")


def test_prompts_on_the_standard_input(checkpoints, capsys, monkeypatch, tmp_path):
    lines = b'{"prompt": "ab"}\nnonsense\n{"text": "x<mask:2>y"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    command = arguments(checkpoints["non_autoregressive"], "--prompts", "-")
    assert launch(command) == 2
    assert_names(capsys.readouterr().err.rstrip("\n"), "standard input", "line 2")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert launch([*command, "--on-bad-prompt", "skip", "--output", str(tmp_path / "out")]) == 0
    first, second, third = map(json.loads, (tmp_path / "out" / "part-00000.jsonl").read_text().splitlines())
    assert first["generated"].startswith("ab")
    assert "error" in second
    assert (third["generated"][0], third["generated"][-1]) == ("x", "y")


def test_what_is_shown_is_what_would_be_written(checkpoints, capsys, tmp_path):
    command = arguments(checkpoints["autoregressive"], "--num-samples", 3, "--temperature", 0.7, "--seed", 4)
    assert launch(command) == 0
    shown = capsys.readouterr().out
    assert launch([*command, "--output", str(tmp_path / "out"), "--print"]) == 0
    assert capsys.readouterr().out == f"{shown}1 part(s) in {tmp_path / 'out'}\n"
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert record["decoding"]["sampler"] == "left_to_right"
    assert record["decoding"]["temperature"] == 0.7
    assert launch([*command, "--top-k", "3", "--output", str(tmp_path / "out")]) == 2
    assert_names(capsys.readouterr().err.rstrip("\n"), tmp_path / "out", "decoding")


def test_one_sample_is_shown_where_nothing_is_asked_for(checkpoints, capsys):
    assert launch(arguments(checkpoints["non_autoregressive"], "--seed", 4)) == 0
    shown = capsys.readouterr().out
    assert launch(arguments(checkpoints["non_autoregressive"], "--num-samples", 1, "--seed", 4)) == 0
    assert shown == capsys.readouterr().out
    assert shown.count("--- ") == 1


def test_a_prompt_has_as_many_answers_as_are_asked_for(checkpoints, capsys):
    command = arguments(checkpoints["autoregressive"], "--prompt", "ab", "--prompt", "c", "--length", 16)
    assert launch([*command, "--num-samples", "2"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^--- (\d) \(after '(\w+)'", shown, re.MULTILINE) == [
        ("0", "ab"),
        ("1", "ab"),
        ("2", "c"),
        ("3", "c"),
    ]
    first, second, *_ = re.split(r"^--- .*\n", shown, flags=re.MULTILINE)[1:]
    assert first != second


def test_pictures_are_named(tmp_path, capsys):
    options = {"vocabulary_size": 5, "tokenizer": None, "logging": {"image_shape": [4, 6]}}
    model = export(tmp_path / "model", "non_autoregressive", **options)
    assert launch(arguments(model, "--num-samples", 2, "--output", tmp_path / "out")) == 0
    assert str(tmp_path / "out" / "part-00000.png") in capsys.readouterr().out.splitlines()
    assert launch(arguments(model, "--num-samples", 2)) == 2
    assert_names(capsys.readouterr().err.rstrip("\n"), "--output", "images")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--worker", "0/2", "--output", "x"], ["--worker", "--output"]),
        (["--follow", "run"], ["--checkpoint", "--follow"]),
        (["--batch-size", "auto"], ["--batch-size", "--output"]),
        (["--watch", "--output", "x"], ["--output", "--watch"]),
    ],
)
def test_options_that_exclude_each_other(capsys, more, named):
    with pytest.raises(SystemExit) as ended:
        parse(arguments("x", "--num-samples", 1, *more))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert all(one in error for one in named)


WATCHED = [
    *((kind, ()) for kind in KINDS),
    *(("hybrid", ("--sampler", sampler)) for sampler in ("left_to_right", "random")),
]


@pytest.mark.parametrize(("kind", "sampler"), WATCHED)
def test_without_a_terminal_each_call_is_a_line(checkpoints, capsys, kind, sampler):
    options = ("--prompt", "ab", "--watch", "--length", 16, "--seed", 2, *sampler)
    assert launch(arguments(checkpoints[kind], *options)) == 0
    lines = capsys.readouterr().out.splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("---"))
    calls = int(re.search(r"(\d+) network calls", lines[end])[1])
    numbers, texts = zip(*(re.fullmatch(r"([ \d]{3}\d) (ab.*)", line).groups() for line in lines[:end]))
    made = list(range(1, calls + 1))
    in_blocks = kind == "block_diffusion" or "random" in sampler  # a call that caches a block reveals nothing
    assert set(map(int, numbers)) <= set(made) if in_blocks else list(map(int, numbers)) == made
    assert len(set(texts)) > 2
    assert lines[end + 1].startswith("ab")


@pytest.mark.parametrize("kind", ["autoregressive"])
def test_in_a_terminal_the_text_is_drawn_in_place(checkpoints, kind):
    ours, theirs = pty.openpty()
    command = arguments(checkpoints[kind], "--prompt", "ab", "--watch", "--length", 12, "--seed", 2)
    running = subprocess.Popen([sys.executable, str(SCRIPT), *command], stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        seen += more
    os.close(ours)
    assert running.wait() == 0, seen
    frames = re.split(rb"\x1b\[\dA\r", seen)
    assert len(frames) >= 3
    assert b"--- 0 (" in frames[-1]
    assert all(b"\x1b[Jab" in frame for frame in frames[:-1])
