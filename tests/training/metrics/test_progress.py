"""A bar on a terminal, lines in a file."""

import fcntl
import logging
import os
import pty
import re
import struct
import termios
from contextlib import suppress

import pytest

from nar_scale.logging_setup import set_up_logging
from nar_scale.training.metrics import progress
from nar_scale.training.metrics.progress import Progress


@pytest.fixture(autouse=True)
def terminal():
    """The handler of scripts, for as long as a test."""
    logger = logging.getLogger("nar_scale")
    before = list(logger.handlers), logger.level, logger.propagate
    set_up_logging()
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def progress_from(step, steps):
    shown = Progress(steps)
    shown.open(step)
    return shown


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_file_gets_a_line_now_and_then(clock, capsys):
    shown = progress_from(0, 1000)
    for step in range(1, 1001):
        clock.now += 0.5
        shown.update(step, 2.5, 12345.6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/1000, loss 2.5000, 12,346 tokens/s"
    assert lines[1] == "step 21/1000, loss 2.5000, 12,346 tokens/s, 8:10 left"
    assert lines[-1] == "step 1000/1000, loss 2.5000, 12,346 tokens/s"
    assert len(lines) == 51


def test_slow_steps_after_a_slow_start(clock, capsys):
    shown = progress_from(500, 510)  # resumed
    clock.now += 3600.0  # compiling, say
    for step in (501, 502, 503):
        shown.update(step, 2.5, 1.0)
        clock.now += 1800.0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == ["1 tokens/s", "4:00:00 left", "3:30:00 left"]


def test_going_back(clock, capsys):
    shown = progress_from(0, 100)
    for step in (10, 20, 30, 5, 6):
        clock.now += 20.0
        shown.update(step, float("nan"), 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "step 5/100, loss nan, 1 tokens/s"
    assert lines[-1] == "step 6/100, loss nan, 1 tokens/s, 31:20 left"


@pytest.mark.parametrize("columns", [60, 100])
def test_a_terminal_gets_a_bar_of_its_width(columns, monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr("sys.stdout", terminal)
        shown = progress_from(2, 8)
        for step in range(3, 9):
            shown.update(step, 2.5, 12345.6)
            if step == 5:
                logging.getLogger("nar_scale.training").info("step 5, validation: 2.0")
        shown.close()
    seen = b""
    with suppress(OSError):  # nothing more to come
        while True:
            seen += os.read(master, 1 << 16)
    os.close(master)
    pictures = [part for part in re.split(r"[\r\n]|\x1b\[A", seen.decode()) if part.strip()]
    assert "step 5, validation: 2.0" in pictures
    assert max(map(len, pictures)) <= columns
    assert "8/8" in pictures[-1]
    assert ("loss 2.5000, 12,346 tokens/s" in pictures[-1]) == (columns == 100)
