"""Merging that is killed before any of its changes to the file system, or that meets another."""

import errno
import fcntl
import multiprocessing
import os
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from nar_scale.data import DatasetInfo, merge_work_items, prepare, prepare_work_items
from nar_scale.data.preparation.merge import EmptySplit
from nar_scale.data.storage.locks import exclusive_lock
from nar_scale.errors import DataError, UserError
from tests.data.corpora import check_whole, tree
from tests.data.killing import killed_before
from tests.data.preparation.preparing import SETTINGS, check_equal, files, plan
from tests.errors import refused

# Killed while merging: the process ends before one of its changes to the file system

CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(monkeypatch, change):
    """End the process, as far as it can tell, before its change number `change`."""
    count = 0

    def wrap(function):
        def change_once(*arguments, **options):
            nonlocal count
            count += 1
            if count >= change:
                raise Killed  # what cleans up is not run by SIGKILL
            return function(*arguments, **options)

        return change_once

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, wrap(getattr(os, name)))
        yield lambda: count


def write_files(directory, first):
    """Files of the same lengths whatever the letters are."""
    directory.mkdir()
    for number in range(5):
        (directory / f"{number}.txt").write_bytes(bytes([ord(first) + number]) * 600)
    return directory


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A smaller corpus: two units."""
    return write_files(tmp_path_factory.mktemp("merging") / "few", "A")


@pytest.fixture(scope="module")
def few_unbroken(few):
    output = few.parent / "unbroken"
    prepare([few], output, **SETTINGS, workers=1, progress=False)
    sizes = DatasetInfo.load(output).splits
    assert sizes["train"].shards > 2
    assert sizes["validation"].shards > 0
    return output


def test_a_merge_killed_at_any_change_is_completed_by_doing_it_again(few, few_unbroken, tmp_path, monkeypatch):
    prepare_work_items(plan(few, tmp_path / "ready"), tmp_path / "ready", workers=1, progress=False)
    change, ended = 0, False
    while not ended:
        change += 1
        output = tmp_path / f"data{change}"
        shutil.copytree(tmp_path / "ready", output)
        with killed_at(monkeypatch, change):
            try:
                merge_work_items(plan(few, output), output)
                ended = True
            except Killed:
                pass
        check_whole(output)
        if change % 4 > 1:
            merge_work_items(plan(few, output), output)
        else:
            prepare([few], output, **SETTINGS, workers=1, progress=False)
        check_equal(output, few_unbroken)
    assert change > 20


def test_the_same_command_succeeds_wherever_the_one_before_was_killed(few, few_unbroken, tmp_path):
    prepare_work_items(plan(few, tmp_path / "ready"), tmp_path / "ready", workers=1, progress=False)
    calls, number, complete = (*CHANGES, "open", "fsync", "close"), 0, 0
    while True:
        number += 1
        output = tmp_path / f"data{number}"
        shutil.copytree(tmp_path / "ready", output)
        killed = killed_before(number, partial(merge_work_items, plan(few, output), output, workers=1), calls)
        complete += (output / "dataset.json").exists()
        if number % 2:
            prepare_work_items(plan(few, output), output, workers=1, progress=False)
            info = merge_work_items(plan(few, output), output, workers=1)
        else:
            info = prepare([few], output, **SETTINGS, workers=1, progress=False)
        assert info == DatasetInfo.load(output)
        check_equal(output, few_unbroken)
        with refused(UserError, output, "--overwrite"):
            prepare([few], output, **{**SETTINGS, "seq_len": 32}, workers=1, progress=False)
        check_equal(output, few_unbroken)
        if not killed:
            break
        shutil.rmtree(output)
    assert number > 40
    assert complete > 5  # killed after dataset.json had appeared


def test_a_finished_data_set_that_has_lost_a_shard_is_not_taken_for_finished_work(few, tmp_path):
    output = tmp_path / "data"
    prepare([few], output, **SETTINGS, workers=1, progress=False)
    (output / "train" / "shard-000001.tar").unlink()
    with refused(UserError, output, "--overwrite"):
        prepare([few], output, **SETTINGS, workers=1, progress=False)


def test_replacing_killed_at_any_change_never_describes_other_shards(few, few_unbroken, tmp_path, monkeypatch):
    ready, old = tmp_path / "ready", {**SETTINGS, "seq_len": 32, "samples_per_shard": 12}
    prepare([few], ready, **old, workers=1, progress=False)
    old_tree = tree(ready)
    prepare_work_items(plan(few, ready), ready, workers=1, overwrite=True, progress=False)
    change, ended = 0, False
    while not ended:
        change += 1
        output = tmp_path / f"data{change}"
        shutil.copytree(ready, output)
        with killed_at(monkeypatch, change):
            try:
                merge_work_items(plan(few, output), output, overwrite=True)
                ended = True
            except Killed:
                pass
        check_whole(output)
        if not (output / "dataset.json").exists():
            for read in (DatasetInfo.load, partial(DatasetInfo.find, storage_options={})):
                with refused(DataError, output, "nar-scale prepare"):
                    read(str(output))
        again, expected = (SETTINGS, tree(few_unbroken)) if change % 3 else (old, old_tree)
        prepare([few], output, **again, workers=1, overwrite=True, progress=False)
        assert tree(output) == expected
        assert files(output) == ["dataset.json", "train", "validation"]
        check_whole(output)
    assert change > 20


def merge_at_once(work, output, barrier, statuses):
    barrier.wait()
    try:
        merge_work_items(work, output, workers=1, progress=False)
        statuses.put("merged")
    except UserError as error:
        statuses.put(str(error))


def test_of_two_merges_at_once_one_succeeds(few, few_unbroken, tmp_path):
    work = plan(few, tmp_path / "data")
    prepare_work_items(work, tmp_path / "ready", workers=1, progress=False)
    context = multiprocessing.get_context("fork")
    for trial in range(10):
        output = tmp_path / f"data{trial}"
        shutil.copytree(tmp_path / "ready", output)
        barrier, statuses = context.Barrier(2), context.SimpleQueue()
        merges = [context.Process(target=merge_at_once, args=(work, output, barrier, statuses)) for _ in range(2)]
        for merge in merges:
            merge.start()
        said = sorted(statuses.get() for _ in merges)
        for merge in merges:
            merge.join()
        assert said[1] == "merged"
        assert said[0] == "merged" or str(output) in said[0]  # the second may come when all is done
        assert tree(output) == tree(few_unbroken)
        assert files(output) == files(few_unbroken)


def test_a_merge_waits_for_nobody_and_a_file_system_without_locks_is_merged_on(
    few, few_unbroken, tmp_path, monkeypatch
):
    output = tmp_path / "data"
    work = plan(few, output)
    prepare_work_items(work, output, workers=1, progress=False)
    before = tree(output)
    with open(output / ".merge.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with refused(UserError, "--merge", output / ".merge.lock"):
            merge_work_items(work, output, workers=1, progress=False)
    assert {name: digest for name, digest in tree(output).items() if name != ".merge.lock"} == before

    def without_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    merge_work_items(work, output, workers=1, progress=False)
    (output / ".merge.lock").unlink()
    check_equal(output, few_unbroken)


def test_what_a_merge_killed_at_its_end_has_left_is_removed(few, few_unbroken, tmp_path):
    for number, action in enumerate((prepare_work_items, merge_work_items)):
        output = tmp_path / f"data{number}"
        shutil.copytree(few_unbroken, output)
        (output / ".prepare-0123.done" / "unit-000000").mkdir(parents=True)
        with refused(UserError, output, "--overwrite"):
            action(plan(few, output, seq_len=32), output, progress=False)
        assert files(output) == files(few_unbroken)


def test_a_lost_shard_is_named(few, tmp_path):
    output = tmp_path / "data"
    work = plan(few, output)
    prepare_work_items(work, output, workers=1, progress=False)
    (staging,) = output.iterdir()
    next(staging.glob("unit-*/train/shard-*.tar")).unlink()
    with refused(DataError, output / "train" / "shard-", staging):
        merge_work_items(work, output)
    assert not (output / "dataset.json").exists()


def test_a_shard_that_was_there_is_not_taken_for_a_lost_one_of_the_same_size(tmp_path):
    old, new = write_files(tmp_path / "old", "a"), write_files(tmp_path / "new", "A")
    output = tmp_path / "data"
    prepare([old], output, **{**SETTINGS, "validation": 0}, workers=1, progress=False)
    work = plan(new, output, validation=0)
    prepare_work_items(work, output, workers=1, overwrite=True, progress=False)
    (lost,) = output.glob(".prepare-*/unit-000000/train/shard-0000.tar")
    assert lost.stat().st_size == (output / "train" / "shard-000000.tar").stat().st_size
    for file in (lost, lost.with_name(f"{lost.name}.index")):
        file.unlink()
    with refused(DataError, output / "train" / "shard-000000.tar"):
        merge_work_items(work, output, overwrite=True)


def test_units_are_whole_or_gone_where_the_removal_of_others_is_killed(tmp_path):
    old, new = write_files(tmp_path / "old", "a"), write_files(tmp_path / "new", "A")
    settings = {**SETTINGS, "validation": 0, "workers": 1, "progress": False}
    ready, fresh = tmp_path / "ready", tmp_path / "fresh"
    prepare([new], fresh, **settings)
    prepare([old], ready, **settings)
    for seq_len in (64, 32):
        prepare_work_items(
            plan(new, ready, validation=0, seq_len=seq_len), ready, workers=1, overwrite=True, progress=False
        )
    for number in (1, 2, 3, 4, 6, 9):
        output = tmp_path / f"data{number}"
        shutil.copytree(ready, output)
        other = plan(new, output, validation=0, seq_len=32)
        assert killed_before(number, partial(merge_work_items, other, output, overwrite=True))
        prepare([new], output, overwrite=True, **settings)
        assert tree(output) == tree(fresh)
        check_whole(output)


def test_a_unit_of_which_a_part_was_deleted_is_done_again(few, few_unbroken, tmp_path):
    output = tmp_path / "data"
    prepare_work_items(plan(few, output), output, workers=1, progress=False)
    next(output.glob(".prepare-*/unit-000001/record.json")).unlink()
    prepare([few], output, **SETTINGS, workers=1, progress=False)
    check_equal(output, few_unbroken)


def test_a_split_stays_empty_where_the_removal_of_its_units_is_killed(few, tmp_path):
    changes = {"validation": 1e-9, "packed": False}
    start = partial(prepare, [few], **{**SETTINGS, **changes}, workers=1, progress=False)
    for number in (1, 2, 3, 5):
        output = tmp_path / f"data{number}"
        work = plan(few, output, **changes)
        prepare_work_items(work, output, workers=1, progress=False)
        staging = output / f".prepare-{work.fingerprint}"
        units = tree(staging)
        assert killed_before(number, partial(start, output=output))
        assert tree(staging) in ({}, units)  # never the half of them
        with refused(EmptySplit, 5, "validation"):
            start(output=output)
        assert not output.exists()


def test_what_killed_processes_were_writing_is_removed_and_what_others_write_is_not(few, tmp_path):
    output = tmp_path / "data"
    work = plan(few, output)
    do_units = partial(prepare_work_items, work, output, workers=1, progress=False)
    assert killed_before(1, do_units, ["fsync"])
    (lock,) = output.glob(".prepare-*/.unit-*.lock")
    killed = Path(str(lock).removesuffix(".lock"))
    assert any(killed.rglob("*.tar"))
    alive, lock_of_alive = Path(f"{killed}1"), Path(f"{killed}1.lock")
    alive.mkdir()
    with exclusive_lock(lock_of_alive):
        do_units()
        assert sorted(killed.parent.glob(".unit-*")) == [alive, lock_of_alive]
