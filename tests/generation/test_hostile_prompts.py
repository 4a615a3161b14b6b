"""Prompts from strangers end in a result or in a line, and command neither the terminal nor the worker."""

import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest

from nar_scale.generation import read_requests
from nar_scale.logging_setup import for_terminal, write_result
from tests.errors import assert_names

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\r\x00\x08\x7f\u202e\u2066"
MIB = 2**20


def only(path):
    (request,) = read_requests(path)
    return request


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["nested"]),
        (b'{"class": ' + b"9" * 100_000 + b"}", ["number"]),
        (b'{"prompt": "a\x00b"}', ["JSON"]),
        (b'{"prompt": "' + b"x" * (4 * MIB), ["JSON"]),
        (b"\x00" * 1000, ["JSON"]),
        (b"\xff\xfe" + '{"prompt": "a"}'.encode("utf-16-le"), ["UTF-8"]),
        (b'{"prompt": "a", "id": {"__class__": "os.system"}}', ["'id'"]),
    ],
    ids=["deep", "long number", "NUL", "giant", "NULs", "UTF-16", "object"],
)
def test_each_attack_is_answered_by_a_short_fault_of_its_line(tmp_path, line, named):
    path = tmp_path / "p.jsonl"
    path.write_bytes(line + b"\n")
    request = only(path)
    assert request.line == 1
    assert_names(request.fault, *named)
    assert len(request.fault) < 300
    assert request.fault.isprintable()


def test_a_giant_prompt_is_a_prompt(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "x" * (4 * MIB)}))
    assert len(only(path).prompt) == 4 * MIB


def test_what_a_terminal_takes_for_commands_is_escaped():
    text = for_terminal(f"a{ESCAPES}b\tc\nd é 漢 👩‍🚀")
    assert not {letter for letter in ESCAPES if not letter.isprintable()} & set(text)
    assert text.endswith("b\tc\nd é 漢 👩‍🚀")
    assert "\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\x0d\\x00\\x08\\x7f\\x202e\\x2066" in text


def test_a_file_gets_results_as_they_are(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    write_result(ESCAPES)
    assert stream.buffer.getvalue().decode() == f"{ESCAPES}\n"


def test_a_terminal_gets_results_and_messages_without_commands():
    script = (
        "import logging; from nar_scale.logging_setup import set_up_logging, write_result; set_up_logging(); "
        "write_result('\\x1b[2Jresult'); logging.getLogger('nar_scale').error('\\x1b]0;title\\x07message')"
    )
    leader, follower = pty.openpty()
    done = subprocess.run([sys.executable, "-c", script], stdout=follower, stderr=follower, check=True)
    os.close(follower)
    shown = b""
    with suppress(OSError):  # which is how a terminal says that nobody writes any more
        while part := os.read(leader, 1000):
            shown += part
    os.close(leader)
    assert done.returncode == 0
    assert b"\\x1b[2Jresult" in shown
    assert b"\\x1b]0;title\\x07message" in shown
    assert b"\x1b" not in shown
