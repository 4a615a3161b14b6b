import os
import signal
import time

import pytest

from nar_scale.checkpoint import CheckpointStore
from nar_scale.checkpoint.consolidate import end_with_parent
from nar_scale.checkpoint.directory import written_whole
from nar_scale.errors import CheckpointError
from nar_scale.training.checkpointing.consolidation_queue import ConsolidationQueue


def outputs(store, *steps):
    for step in steps:
        (store.directory.parent / "consolidated" / store.path(step).name).mkdir(parents=True)


def names(store):
    return sorted(path.name for path in (store.directory.parent / "consolidated").iterdir())


def test_going_back_quarantines_what_lies_ahead(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    outputs(store, 10, 20, 30)
    consolidations = ConsolidationQueue(store)
    consolidations.forget_after(10)
    assert names(store) == [".superseded-step-000000020", ".superseded-step-000000030", "step-000000010"]
    outputs(store, 20)
    consolidations.forget_after(10)
    assert names(store) == [".superseded-step-000000020", ".superseded-step-000000030", "step-000000010"]


def test_what_is_there_is_not_made_again(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    outputs(store, 10)
    consolidations = ConsolidationQueue(store)
    consolidations.add(10)
    assert consolidations.steps == []


def test_a_failure_is_logged_and_the_next_one_begins(tmp_path, capfd, caplog):
    (tmp_path / "checkpoints").mkdir()
    store = CheckpointStore(tmp_path / "checkpoints")
    consolidations = ConsolidationQueue(store)
    consolidations.add(10)
    consolidations.add(20)
    consolidations.add(20)
    assert consolidations.steps == [10, 20]
    while consolidations.steps == [10, 20]:
        time.sleep(0.05)
        consolidations.advance()
    assert caplog.messages == ["the checkpoint of step 10 could not be consolidated"]
    assert "has no checkpoint of step 10" in capfd.readouterr().err
    assert consolidations._process is not None
    assert consolidations._process.poll() is None
    consolidations.terminate()


def test_one_under_way_is_ended_when_the_run_goes_back(tmp_path):
    consolidations = ConsolidationQueue(CheckpointStore(tmp_path / "checkpoints"))
    consolidations.add(10)
    consolidations.forget_after(5)
    assert consolidations.steps == []
    consolidations.advance()


def forked(work, *arguments):
    """A process of its own that does some work; its id, and where what it writes to stderr can be read to its end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 2)
        os.close(writer)
        try:
            work(*arguments)
        finally:
            os._exit(0)
    os.close(writer)
    return pid, os.fdopen(reader)


def start_and_die(store):
    ConsolidationQueue(store).add(10)
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_under_way_ends_with_the_run(tmp_path):
    pid, stderr = forked(start_and_die, CheckpointStore(tmp_path / "checkpoints"))
    os.waitpid(pid, 0)
    assert stderr.read() == ""  # it has not come to look for the checkpoint, which is not there


def write_for_long(output, parent):
    end_with_parent(parent)
    with written_whole(output):
        os.write(2, b"writing\n")
        time.sleep(60)


def write_for_long_in_a_child(output):
    os.dup(2)  # inherited by the orphan, so that its end is the end of what can be read
    pid, stderr = forked(write_for_long, output, os.getpid())
    os.write(2, f"{pid}, {stderr.readline()}".encode())


def test_one_that_is_ended_leaves_nothing(tmp_path):
    pid, stderr = forked(write_for_long, tmp_path / "asked", os.getpid())
    assert stderr.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 1
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    assert list(tmp_path.iterdir()) == []

    parent, stderr = forked(write_for_long_in_a_child, tmp_path / "orphaned")
    assert stderr.readline().endswith(", writing\n")
    os.waitpid(parent, 0)
    assert stderr.read() == ""  # the orphan has ended, too
    assert list(tmp_path.iterdir()) == []


def write_while_another_does(output):
    with written_whole(output) as first:
        (first / "file").write_text("first")
        with written_whole(output) as second:
            (second / "file").write_text("second")
        assert (first / "file").read_text() == "first"


def test_two_that_write_the_same_keep_apart(tmp_path):
    with pytest.raises(CheckpointError, match="output"):
        write_while_another_does(tmp_path / "output")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert (tmp_path / "output" / "file").read_text() == "second"
