"""`launcher/evaluate.py` as a user calls it."""

import json
import os

from launcher.evaluate import main
from tests.data.preparation.preparing import made
from tests.errors import assert_names
from tests.generation.helpers import export


def test_a_result_is_written_through_a_link_and_follows_the_umask(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a few words, and not many of them. " * 40)
    made(tmp_path / "text.txt", tmp_path / "data", seq_len=24)
    export(tmp_path / "model", "autoregressive")
    target, link = tmp_path / "result.json", tmp_path / "link.json"
    link.symlink_to(target.name)
    given = ["--checkpoint", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--split", "train"]
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


def test_the_files_of_an_exported_model_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        export(tmp_path / "model", "autoregressive")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
