import errno
import itertools
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from nar_scale.checkpoint import CheckpointStore, list_files, record_files
from nar_scale.checkpoint.store import verify_integrity
from nar_scale.errors import CheckpointError
from tests.errors import assert_names, refused


def write(directory, content):
    (directory / "weights.bin").write_bytes(content * 1000)
    (directory / "zero").mkdir(exist_ok=True)
    (directory / "zero" / "optimizer.bin").write_bytes(content * 10)


def save(store, step, content=b"abc"):
    writing = store.prepare(step)
    write(writing, content)
    return store.publish(writing, step, record_files(writing, list_files(writing)))


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run" / "checkpoints")


@pytest.fixture
def reports():
    return []


def test_a_published_checkpoint_is_whole_and_pointed_to(store, reports):
    assert store.steps() == []
    assert store.newest_good(reports.append) is None
    for step in (10, 200, 3000):
        path = save(store, step)
        assert path == store.path(step)
        assert (store.directory / "latest").read_text() == f"{path.name}\n"
        assert not list(store.directory.glob(".*"))
    assert store.steps() == [10, 200, 3000]
    assert store.newest_good(reports.append) == 3000
    assert reports == []
    manifest = json.loads((store.path(10) / "manifest.json").read_text())
    assert {name: record["size"] for name, record in manifest.items()} == {
        "weights.bin": 3000,
        "zero/optimizer.bin": 30,
    }


def test_what_is_being_written_is_not_there_yet(store, reports):
    save(store, 1)
    write(store.prepare(2), b"new")
    assert store.steps() == [1]
    assert store.newest_good(reports.append) == 1
    assert (store.directory / "latest").read_text() == "step-000000001\n"
    assert list(store.prepare(2).iterdir()) == []


def test_what_a_killed_attempt_left_behind_is_removed_in_time(store):
    young, old = store.prepare(1), store.prepare(1)
    os.utime(old, times=(0, 0))
    store.prepare(2)
    assert young.exists()
    assert not old.exists()


def test_what_is_being_written_for_long_is_no_leftover(store):
    writing = store.prepare(1)
    write(writing, b"abc")
    os.utime(writing, times=(0, 0))  # which writing into an open file does not change
    store.prepare(2)
    assert writing.exists()


def test_a_start_frees_what_killed_attempts_hold(store):
    for step in (10, 20, 30):
        save(store, step)
    store.supersede_after(10)
    store.prepare(20)
    store.clean_up(20)
    assert [path.name for path in store.directory.glob(".*")] == [".superseded-step-000000030"]
    assert store.steps() == [10]


def test_leftovers_are_removed_before_space_is_asked_for(store, monkeypatch):
    old = store.prepare(1)
    os.utime(old, times=(0, 0))
    mkdir = Path.mkdir

    def mkdir_on_a_full_disk(path, **options):
        if old.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir_on_a_full_disk)
    assert store.prepare(2).is_dir()


def test_a_checkpoint_can_be_written_again(store, reports):
    save(store, 1, b"old")
    save(store, 1, b"new")
    assert (store.path(1) / "weights.bin").read_bytes() == b"new" * 1000
    assert store.newest_good(reports.append) == 1


def truncate(path):
    (path / "weights.bin").write_bytes(b"abc" * 999)


def change_a_byte(path):
    (path / "zero" / "optimizer.bin").write_bytes(b"abc" * 9 + b"abd")


DAMAGES = {
    ("weights.bin", 2997, 3000): truncate,
    ("optimizer.bin", "checksum"): change_a_byte,
    ("optimizer.bin", "missing"): lambda path: (path / "zero" / "optimizer.bin").unlink(),
    ("manifest.json", "No such file"): lambda path: (path / "manifest.json").unlink(),
    ("manifest.json", "not a manifest"): lambda path: (path / "manifest.json").write_text('{"weights.bin": {"si'),
}


@pytest.mark.parametrize(("named", "damage"), DAMAGES.items(), ids=range(len(DAMAGES)))
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(store, reports, named, damage):
    for step in (1, 2, 3):
        save(store, step)
    damage(store.path(3))
    assert store.newest_good(reports.append) == 2
    assert len(reports) == 1
    assert_names(reports[0], store.path(3), *named)
    for step in (1, 2):
        damage(store.path(step))
    with refused(CheckpointError, store.directory, "step-000000003", *named):
        store.newest_good(reports.append)


def test_any_changed_byte_of_the_manifest_is_noticed(store):
    path = save(store, 1) / "manifest.json"
    good = path.read_bytes()
    unnoticed = []
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        if verify_integrity(path.parent) is None and json.loads(path.read_bytes()) != json.loads(good):
            unnoticed.append(place)
    assert unnoticed == []


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '{"weights.bin": 3}', '{"weights.bin": {"size": 3000}}'])
def test_a_manifest_of_another_make_is_damage(store, reports, manifest):
    save(store, 1)
    (save(store, 2) / "manifest.json").write_text(manifest)
    assert store.newest_good(reports.append) == 1


def test_what_is_not_as_recorded_is_not_published(store):
    writing = store.prepare(5)
    write(writing, b"abc")
    records = record_files(writing, list_files(writing))
    with refused(CheckpointError, "'zero/optimizer.bin'", "['weights.bin']"):
        store.publish(writing, 5, {"weights.bin": records["weights.bin"]})
    truncate(writing)
    with refused(CheckpointError, "weights.bin", "3000 bytes"):
        store.publish(writing, 5, records)
    assert store.steps() == []
    assert not (store.directory / "latest").exists()


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [7]), (2, None, [6, 7]), (9, None, [1, 2, 3, 4, 5, 6, 7]), (1, 3, [3, 6, 7]), (2, 5, [5, 6, 7])],
)
def test_retention(store, reports, keep_last, keep_every, kept):
    for step in range(1, 8):
        save(store, step)
    store.retain(keep_last, keep_every)
    assert store.steps() == kept
    assert store.newest_good(reports.append) == 7


def killed_at_deletion(number, action):
    """Do something in a process of its own that is killed where it deletes its n-th file; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        deletions = itertools.count(1)
        unlink = os.unlink

        def die_or_unlink(*arguments, **options):
            if next(deletions) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            unlink(*arguments, **options)

        os.unlink = die_or_unlink
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("again", [None, 2])
@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_a_kill_leaves_no_half_of_a_checkpoint(store, keep_last, again, number):
    for step in (1, 2, 3):
        save(store, step)

    def write_and_delete():
        if again:
            save(store, again)
        store.retain(keep_last, None)

    assert killed_at_deletion(number, write_and_delete) == (again is not None or keep_last < 3)
    assert 3 in store.steps()
    assert [verify_integrity(store.path(step)) for step in store.steps()] == [None] * len(store.steps())
    save(store, 4)
    store.retain(1, None)
    assert (store.steps(), hidden(store)) == ([4], [])


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for directory in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with refused(CheckpointError, directory):
            CheckpointStore(directory).prepare(1)


def test_a_directory_that_vanishes_is_one_clear_error(store):
    writing = store.prepare(1)
    write(writing, b"abc")
    records = record_files(writing, list_files(writing))
    shutil.rmtree(store.directory)
    with pytest.raises(CheckpointError):
        store.publish(writing, 1, records)


def test_writers_that_disturb_each_other_leave_a_good_store(store, reports):
    """Two jobs on one run directory: errors are clear, and there is always a good checkpoint to go on from."""
    for step in (1, 2):
        save(store, step)

    def job(content):
        for step in range(3, 30):
            with suppress(CheckpointError, FileNotFoundError):  # the latter from writing files, here in the test
                save(CheckpointStore(store.directory), step, content)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(job, (b"one", b"two")))
    newest = store.newest_good(reports.append)
    assert newest >= 2
    assert verify_integrity(store.path(newest)) is None
    assert store.newest_good(reports.append) == newest
    assert save(store, 99)
    assert store.newest_good(reports.append) == 99


def test_files_of_another_writer_are_not_published_as_ones_own(store, reports):
    save(store, 1)
    first, second = store.prepare(2), store.prepare(2)
    write(first, b"one")
    records = record_files(first, list_files(first))
    write(second, b"two")
    store.publish(first, 2, records)
    assert all(verify_integrity(store.path(step)) is None for step in store.steps())
    assert (store.path(2) / "weights.bin").read_bytes() == b"one" * 1000


def test_names():
    assert Path(CheckpointStore("here").path(12)) == Path("here/step-000000012")
    assert repr(CheckpointStore("here")) == "CheckpointStore('here', steps=[])"


def test_going_back_hides_later_checkpoints_and_points_to_the_earlier_one(store):
    for step in (10, 20, 30):
        save(store, step)
    store.supersede_after(10)
    assert store.steps() == [10]
    assert (store.directory / "latest").read_text() == "step-000000010\n"
    assert sorted(path.name for path in store.directory.glob(".superseded-*")) == [
        ".superseded-step-000000020",
        ".superseded-step-000000030",
    ]


def hidden(store):
    return sorted(int(path.name.rpartition("-")[2]) for path in store.directory.glob(".superseded-*"))


def test_what_was_superseded_is_deleted_once_the_run_has_come_as_far_again(store):
    for step in (10, 20, 30, 40):
        save(store, step)
    store.supersede_after(10)
    for step, expected in ((15, [20, 30, 40]), (20, [30, 40]), (35, [40]), (50, [])):
        save(store, step)
        store.retain(2, None)
        assert hidden(store) == expected


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_run_goes_through_the_newest_good_checkpoint_stays(store, reports, seed):
    """Saved, damaged, gone back, cleaned up: what it can go on from is there, and what is hidden lies ahead of it."""
    random = Random(seed)
    step, hidden_so_far = 0, set()
    for _ in range(40):
        if step == 0 or random.random() < 0.6:
            step += 10
            save(store, step)
            store.retain(keep_last=random.randint(1, 3), keep_every=None)
            assert store.newest_good(reports.append) == step
        else:
            if len(store.steps()) > 1 and random.random() < 0.5:
                truncate(store.path(store.steps()[-1]))
            good = [each for each in store.steps() if verify_integrity(store.path(each)) is None]
            step = random.choice([good[-1], *good])
            store.supersede_after(step)
            assert store.steps() == [each for each in good if each <= step]
            hidden_so_far.update(hidden(store))
        assert all(each > step for each in hidden(store))
    assert hidden_so_far - set(hidden(store))


def test_checkpoints_that_are_being_read_are_not_deleted(store):
    for step in (10, 20, 30):
        save(store, step)
    store.retain(1, None, in_use=[10])
    assert store.steps() == [10, 30]


def test_shares_of_the_files_are_looked_at_by_several(store):
    path = save(store, 10)
    (path / "weights.bin").write_bytes(b"abd" * 1000)
    problems = [verify_integrity(path, (share, 2)) for share in range(2)]
    assert sorted(problem is None for problem in problems) == [False, True]
