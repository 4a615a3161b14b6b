"""What Ctrl-C makes of long work: one line, which says what is kept. Bars are in test_long_work.py."""

import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from nar_scale.checkpoint.directory import written_whole
from nar_scale.commands.process import INTERRUPTED, exit_status
from nar_scale.progress import kept_at_interrupt, progress_bar, with_progress
from tests.errors import assert_names
from tests.terminal import set_width, standard_error_on_a_terminal

LAUNCHER = Path(__file__).parents[1] / "launcher"
BAR = r"{}: .*\d.*\[.*<.*{}/s\]"  # elapsed < left, and a rate


def test_ctrl_c_ends_preparation_in_one_line_and_it_goes_on_from_there(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(16):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} words and more of them, a line\n" * 48_000)
    output = tmp_path / "data"
    options = ["--input", str(tmp_path / "texts"), "--output", str(output), "--seq-len", "64", "--workers", "2"]
    command = [sys.executable, str(LAUNCHER / "prepare.py"), *options, "--unit-bytes", "500000"]
    pid, terminal = pty.fork()
    if pid == 0:  # the leader of a session, whose terminal sends it and its workers SIGINT
        set_width(0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background, such as all tests, ignores it
        os.execv(sys.executable, command)
    seen = b""
    while not re.search(rb"prepare: +[1-9]", seen):  # the first work items are done
        seen += os.read(terminal, 1 << 16)
    os.write(terminal, b"\x03")
    with suppress(OSError):
        while piece := os.read(terminal, 1 << 16):
            seen += piece
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == INTERRUPTED
    text = seen.decode()
    assert re.search(BAR.format("prepare", "B"), text)
    assert "Traceback" not in text
    assert_names(text.replace("\r", "").splitlines()[-1], "prepare", "interrupted", output)
    assert not (output / "dataset.json").exists()
    before = {path for path in output.rglob("*") if path.is_file()}
    assert before
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stderr == ""
    assert (output / "dataset.json").exists()


def outcome(raised, *blocks):
    """Type and message of what an exception becomes on its way out of blocks, of which the outermost comes first."""
    try:
        with ExitStack() as stack:
            for kept in blocks:
                stack.enter_context(kept_at_interrupt(kept))
            raise raised
    except BaseException as caught:
        return type(caught), str(caught)


def test_the_innermost_says_what_is_kept():
    assert outcome(KeyboardInterrupt(), "all", "the parts") == (KeyboardInterrupt, "the parts")
    assert outcome(ValueError("other"), "all") == (ValueError, "other")


def test_a_directory_that_was_not_finished_is_given_up_and_named(tmp_path):
    def interrupted():
        with written_whole(tmp_path / "new") as writing:
            (writing / "file").write_text("begun")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert_names(str(caught.value), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [(), ("the parts are kept",)])
def test_an_interruption_is_one_line_and_a_status(kept, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nar-scale prepare"])

    def interrupted():
        raise KeyboardInterrupt(*kept)

    assert exit_status(interrupted) == 130
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.startswith("prepare: ")
    assert_names(line, "interrupted", *kept)


@pytest.mark.parametrize("size", [(24, 100), (0, 0)], ids=["with a size", "without"])
def test_a_terminal_has_a_bar(monkeypatch, size):
    with standard_error_on_a_terminal(monkeypatch) as seen:
        set_width(sys.stderr.fileno(), *size)
        with progress_bar("work", 10, "B") as bar:
            bar.update(5)
            bar.refresh()
    assert "50%" in seen[0]


def test_items_come_through_as_they_are():
    assert list(with_progress(iter([3, 1, 2]), "count", "item")) == [3, 1, 2]
