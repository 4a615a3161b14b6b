"""Long work on a real terminal: a bar with a rate and the time left, and one line where Ctrl-C ends it."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
import torch

from nar_scale.checkpoint.directory import written_whole
from nar_scale.checkpoint.shards import save_weights
from nar_scale.commands import evaluate, generate, prepare
from nar_scale.commands.process import INTERRUPTED, exit_status
from nar_scale.progress import kept_at_interrupt, with_progress
from tests.data.preparation.preparing import made
from tests.errors import assert_names
from tests.generation.helpers import export

LAUNCHER = Path(__file__).parents[1] / "launcher"
BAR = r"{}: .*\d.*\[.*<.*{}/s\]"  # elapsed < left, and a rate


def set_width(terminal):
    """Give a terminal its 24 lines of 100 letters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))


@contextmanager
def standard_error_on_a_terminal(monkeypatch):
    """A `with` block that gives what was written to a terminal, as the last item of a list, when it is over."""
    master, slave = pty.openpty()
    set_width(slave)
    seen, pieces = [], []

    def read():
        with suppress(OSError):  # nothing more to come
            while piece := os.read(master, 1 << 16):
                pieces.append(piece)

    reader = Thread(target=read)
    reader.start()
    with open(slave, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", terminal)
        yield seen
    reader.join()
    os.close(master)
    seen.append(b"".join(pieces).decode())


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    (root / "texts").mkdir()
    for number in range(12):
        (root / "texts" / f"{number}.txt").write_text(f"{number} words " * 40)
    made(root / "texts", root / "data", seq_len=24, validation=0.4)
    export(root / "model", "non_autoregressive")
    return root


def jobs(given, directory):
    """What a bar is named, what it counts, and the job that shows it, by name of the job."""
    model = ["--checkpoint", str(given / "model")]
    likelihood = [*model, "--data", str(given / "data"), "--output", "/dev/null"]
    samples = [*model, "--output", str(directory / "samples"), "--num-samples", "3", "--part-size", "1"]
    whole = ["--verify", str(given / "data"), "--workers", "1"]
    return {
        "evaluate": ("evaluate", "batch", lambda: evaluate.main(likelihood)),
        "generate": ("generate", "part", lambda: generate.main(samples)),
        "verify": ("verify", "B", lambda: prepare.main(whole)),
        "weights": ("write model", "B", lambda: save_weights(directory, {"a": torch.ones(9)}) or 0),
    }


@pytest.mark.parametrize("name", ["evaluate", "generate", "verify", "weights"])
def test_a_bar_on_a_terminal_alone(given, name, tmp_path, monkeypatch, capfd):
    description, unit, job = jobs(given, tmp_path)[name]
    with standard_error_on_a_terminal(monkeypatch) as seen:
        assert job() == 0
    pictures = re.split(r"[\r\n]", seen[-1])
    assert any(re.search(BAR.format(re.escape(description), unit), picture) for picture in pictures), pictures
    (tmp_path / "again").mkdir()
    capfd.readouterr()
    assert jobs(given, tmp_path / "again")[name][2]() == 0
    assert capfd.readouterr().err == ""


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


def test_items_come_through_as_they_are():
    assert list(with_progress(iter([3, 1, 2]), "count", "item")) == [3, 1, 2]
