"""What is written leads where the path leads, and nothing that is no file is replaced."""

import os
import threading
from pathlib import Path

import pytest

from nar_scale.files import write_atomically


@pytest.fixture(autouse=True)
def nothing_outside_is_replaced(tmp_path, monkeypatch):
    """Not even by a fault: these tests name devices of the machine."""
    replace = os.replace

    def replace_within(source: Path, target: Path) -> None:
        assert Path(os.path.realpath(target)).is_relative_to(os.path.realpath(tmp_path)), target
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_within)


@pytest.mark.parametrize("before", [b"old", None])
def test_a_link_stays_and_leads_to_what_was_written(tmp_path, before):
    (tmp_path / "far").mkdir()
    target, link, links = tmp_path / "far" / "file", tmp_path / "link", tmp_path / "links"
    link.symlink_to("far/file")
    links.symlink_to("link")
    if before is not None:
        target.write_bytes(before)
    write_atomically(links, b"new")
    assert (link.is_symlink(), links.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["file"]


@pytest.mark.parametrize("directory", ["/dev/fd", "/proc/self/fd"])
def test_a_pipe_is_written_to(tmp_path, directory):
    reading, writing = os.pipe()
    link = tmp_path / "link"
    link.symlink_to(f"{directory}/{writing}")
    write_atomically(Path(f"{directory}/{writing}"), b"some")
    write_atomically(link, b"thing")
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b"something"


def test_a_named_pipe_is_written_to_through_a_link(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    writer = threading.Thread(target=write_atomically, args=(link, b"something"), daemon=True)
    writer.start()
    assert pipe.read_bytes() == b"something"
    writer.join()
    assert pipe.is_fifo()


def test_a_device_that_is_full_says_so_through_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(link, b"something")
    assert link.is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
