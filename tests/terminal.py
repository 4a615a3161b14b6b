"""A terminal for standard error, of which a test sees what was written to it."""

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest


def set_width(terminal: int, lines: int = 24, columns: int = 100) -> None:
    """Give a terminal its lines and their letters; 0 of both for one that does not say."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def terminal() -> Iterator[tuple[int, list[str]]]:
    """A `with` block with a terminal to write to, and what was written to it, an item that is there afterwards."""
    master, slave = pty.openpty()
    set_width(slave)
    seen: list[str] = []
    pieces: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # nothing more to come
            while piece := os.read(master, 1 << 16):
                pieces.append(piece)

    reader = Thread(target=read)
    reader.start()
    try:
        yield slave, seen
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    seen.append(b"".join(pieces).decode())


@contextmanager
def standard_error_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A `with` block, in this process, that gives what was written as the only item of a list when it is over."""
    with (
        terminal() as (descriptor, seen),
        open(descriptor, "w", closefd=False) as stream,
        monkeypatch.context() as patched,
    ):
        patched.setattr("sys.stderr", stream)
        yield seen
