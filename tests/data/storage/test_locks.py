import errno
import fcntl
import multiprocessing
import os
import signal
import threading

import pytest

from nar_scale.data.storage.locks import directory_lock, exclusive_lock, exclusive_lock_if_supported

fork = multiprocessing.get_context("fork")


def hold(path, held):
    with exclusive_lock(path):
        held.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """A process that holds a lock until it is killed."""
    held = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path / "lock", held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_lock_is_held_by_one_process(tmp_path, holder):
    with pytest.raises(BlockingIOError) as raised, exclusive_lock(tmp_path / "lock", wait=False):
        pass
    assert raised.value.errno == errno.EAGAIN
    assert (tmp_path / "lock").exists()
    with exclusive_lock(tmp_path / "other", wait=False):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    waiting = threading.Thread(target=holder.join)
    waiting.start()
    holder.kill()
    with exclusive_lock(tmp_path / "lock"):
        assert os.listdir(tmp_path) == ["lock"]
    waiting.join()
    assert os.listdir(tmp_path) == []


def test_threads_exclude_each_other_too(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(20):
            with exclusive_lock(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
    assert os.listdir(tmp_path) == []


def test_not_even_the_holder_takes_a_lock_twice(tmp_path):
    with (
        exclusive_lock(tmp_path / "lock"),
        pytest.raises(BlockingIOError),
        exclusive_lock(tmp_path / "lock", wait=False),
    ):
        pass


def test_an_error_frees_the_lock(tmp_path, monkeypatch):
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "lock"):
        raise KeyError
    monkeypatch.setattr(os, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
    with pytest.raises(PermissionError), exclusive_lock(tmp_path / "lock"):
        pass
    monkeypatch.undo()
    with exclusive_lock(tmp_path / "lock", wait=False):
        pass


def test_other_users_can_open_a_lock_file_that_is_left(tmp_path):
    before = os.umask(0o077)
    try:
        with exclusive_lock(tmp_path / "lock"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    with exclusive_lock(tmp_path / "lock"):
        child = fork.Process(target=signal.pause)
        child.start()
    with exclusive_lock(tmp_path / "lock", wait=False):
        pass
    child.kill()
    child.join()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def without_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    for wait in (True, False):
        with pytest.raises(OSError) as raised, exclusive_lock(tmp_path / "lock", wait):  # noqa: PT011
            pass
        assert raised.value.errno == number
        with exclusive_lock_if_supported(tmp_path / "lock", wait):
            entered = wait
    assert entered is False


def test_what_is_no_lack_of_locks_is_an_error(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError), exclusive_lock_if_supported(tmp_path / "lock"):
        pass


def hold_directory(directory, held):
    with directory_lock(directory):
        held.set()
        signal.pause()


def test_a_directory_is_locked_by_one_process_until_it_is_killed(tmp_path):
    held = fork.Event()
    process = fork.Process(target=hold_directory, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    process.kill()
    with directory_lock(tmp_path):
        assert os.listdir(tmp_path) == []
    process.join()
