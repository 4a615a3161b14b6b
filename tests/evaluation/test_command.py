"""`launcher/evaluate.py` as a user calls it."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from nar_scale.commands.evaluate import main
from tests.data.preparation.preparing import made
from tests.errors import assert_names
from tests.generation.helpers import export

EVALUATE = Path(__file__).parents[2] / "launcher" / "evaluate.py"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The arguments but the output."""
    directory = tmp_path_factory.mktemp("given")
    (directory / "text.txt").write_text("a few words, and not many of them. " * 40)
    made(directory / "text.txt", directory / "data", seq_len=24)
    export(directory / "model", "autoregressive")
    return ["--checkpoint", str(directory / "model"), "--data", str(directory / "data"), "--split", "train"]


def test_a_result_is_written_through_a_link_and_follows_the_umask(given, tmp_path, capsys):
    target, link = tmp_path / "result.json", tmp_path / "link.json"
    link.symlink_to(target.name)
    before = os.umask(0o022)
    try:
        assert main([*given, "--output", str(link)]) == 0
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert json.loads(target.read_text())["tokens"] > 0
    assert target.stat().st_mode & 0o777 == 0o644
    capsys.readouterr()
    assert main([*given, "--output", str(tmp_path / "nowhere" / "x.json")]) == 2
    assert_names(capsys.readouterr().err.removesuffix("\n"), tmp_path / "nowhere" / "x.json")


def test_the_standard_output_gets_the_result_and_nothing_else(given):
    command = [sys.executable, str(EVALUATE), *given, "--output", "/dev/stdout"]
    piped = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert piped.returncode == 0, piped.stderr
    assert f"{json.loads(piped.stdout)['tokens']:,} tokens" in piped.stderr


def test_a_file_as_the_standard_output_is_appended_to(given, tmp_path):
    earlier = tmp_path / "results.jsonl"
    earlier.write_text("[]\n")
    with open(earlier, "a") as file, redirect_stdout(file):
        assert main([*given, "--output", str(earlier)]) == 0
    first, rest = earlier.read_text().split("\n", 1)
    assert first == "[]"
    assert json.loads(rest)["tokens"] > 0


def test_the_files_of_an_exported_model_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        export(tmp_path / "model", "autoregressive")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
