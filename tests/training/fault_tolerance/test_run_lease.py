"""One run at a time holds a run directory, whichever way the one before has ended."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nar_scale.errors import UserError
from nar_scale.training.fault_tolerance.run_lease import Holder, RunLease, find_loss
from tests.errors import assert_names, refused

HERE = Holder.of_this_process({})
ELSEWHERE = replace(HERE, host="n7", machine="another", pid=4711, token="theirs")
HEARTBEAT = 0.1
EXPIRY = 5.0


def lease(directory: Path, holder: Holder, heartbeat: float = HEARTBEAT, expiry: float = EXPIRY) -> RunLease:
    return RunLease(directory, lambda problem: None, holder, heartbeat, expiry)


def abandon(directory: Path, holder: Holder) -> None:
    """Leave the lease of a process that was killed: nobody renews it."""
    lease(directory, holder, heartbeat=3600).acquire()


def sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def holder_of(process: "subprocess.Popen[bytes]") -> Holder:
    found = psutil.Process(process.pid)
    return replace(HERE, pid=process.pid, started=found.create_time() - psutil.boot_time(), token="its")


@pytest.fixture
def other_process() -> Iterator["subprocess.Popen[bytes]"]:
    process = sleeper()
    yield process
    process.kill()
    process.wait()


def seconds_to_acquire(directory: Path, holder: Holder = HERE, expiry: float = EXPIRY) -> float:
    start = time.monotonic()
    with lease(directory, holder, expiry=expiry) as own:
        own.acquire()
        return time.monotonic() - start


def test_a_lease_leaves_nothing_behind(tmp_path):
    with lease(tmp_path, HERE) as own:
        own.acquire()
        assert [path.name for path in tmp_path.iterdir()] == ["lease-1.json"]
    assert not list(tmp_path.iterdir())


def test_a_live_process_of_this_machine_is_named_at_once(tmp_path, other_process):
    abandon(tmp_path, holder_of(other_process))  # it need not renew anything
    with refused(UserError, tmp_path, other_process.pid, HERE.host, "training.run_directory"):
        seconds_to_acquire(tmp_path, expiry=3600)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path, other_process, reaped):
    abandon(tmp_path, holder_of(other_process))
    other_process.send_signal(signal.SIGKILL)
    if reaped:
        other_process.wait()
    else:
        while psutil.Process(other_process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert seconds_to_acquire(tmp_path, expiry=3600) < 60


def test_a_later_process_of_the_same_number_is_another(tmp_path, other_process):
    abandon(tmp_path, replace(holder_of(other_process), started=-100.0))
    assert seconds_to_acquire(tmp_path, expiry=3600) < 60


def test_a_process_that_may_not_be_looked_at_is_judged_by_its_renewals(tmp_path, monkeypatch):
    def denied(pid: int) -> psutil.Process:
        raise psutil.AccessDenied(pid)

    theirs = replace(HERE, token="another user's")
    monkeypatch.setattr(psutil, "Process", denied)
    with lease(tmp_path, theirs) as other:
        other.acquire()
        with refused(UserError, HERE.pid):
            seconds_to_acquire(tmp_path, expiry=3600)


@pytest.fixture
def hidden_processes(tmp_path_factory, monkeypatch) -> None:
    """What psutil sees where /proc hides other users' processes (hidepid)."""
    proc = tmp_path_factory.mktemp("proc")
    for name in ("stat", "uptime"):
        (proc / name).symlink_to(f"/proc/{name}")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))


def test_a_process_that_the_system_hides_is_judged_by_its_renewals(tmp_path, other_process, hidden_processes):
    assert not psutil.pid_exists(other_process.pid)
    theirs = replace(HERE, pid=other_process.pid)
    assert theirs.runs_here() is None
    with lease(tmp_path, theirs) as other:
        other.acquire()
        with refused(UserError, other_process.pid):
            seconds_to_acquire(tmp_path, expiry=3600)


def test_a_killed_process_is_not_waited_for_where_others_are_hidden(other_process, hidden_processes):
    other_process.kill()
    other_process.wait()
    assert replace(HERE, pid=other_process.pid).runs_here() is False


def test_a_run_on_another_machine_that_renews_is_refused(tmp_path):
    with lease(tmp_path, ELSEWHERE) as theirs:
        theirs.acquire()
        with refused(UserError, "n7", 4711):
            seconds_to_acquire(tmp_path, expiry=3600)


def test_a_run_on_another_machine_that_does_not_renew_expires(tmp_path, caplog):
    abandon(tmp_path, ELSEWHERE)
    with caplog.at_level(logging.WARNING):
        assert seconds_to_acquire(tmp_path, expiry=2) >= 2
    (record,) = caplog.records
    assert_names(record.getMessage(), tmp_path, "n7", 4711, 2)


def test_a_stall_of_the_observer_is_not_a_lack_of_renewals(tmp_path):
    abandon(tmp_path, ELSEWHERE)
    fork = multiprocessing.get_context("fork")
    answers, answer = fork.Pipe(duplex=False)

    def acquire() -> None:
        try:
            answer.send(f"took it after {seconds_to_acquire(tmp_path)} s")
        except UserError as error:
            answer.send(str(error))

    observer = fork.Process(target=acquire)
    observer.start()
    time.sleep(1)  # it has begun to look
    assert observer.pid is not None
    os.kill(observer.pid, signal.SIGSTOP)
    time.sleep(EXPIRY + 1)  # in which no holder could renew either
    os.kill(observer.pid, signal.SIGCONT)
    time.sleep(1)
    os.utime(tmp_path / "lease-1.json")
    assert answers.poll(60)
    assert_names(answers.recv(), tmp_path, "n7", 4711)
    observer.join()


def test_a_lease_that_is_given_back_is_not_waited_for(tmp_path):
    with ExitStack() as theirs:
        theirs.enter_context(lease(tmp_path, ELSEWHERE, heartbeat=3600)).acquire()
        threading.Timer(1.0, theirs.close).start()
        assert seconds_to_acquire(tmp_path, expiry=3600) < 60


def test_a_requeued_attempt_takes_over_and_the_older_one_ends(tmp_path):
    first = replace(ELSEWHERE, job="88", attempt=0)
    second = replace(HERE, job="88", attempt=1)
    lost: list[str] = []
    older = RunLease(tmp_path, lost.append, first, HEARTBEAT)
    older.acquire()
    with lease(tmp_path, second) as newer:
        newer.acquire()
        deadline = time.monotonic() + 60
        while not lost:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert_names(lost[0], tmp_path, second.pid, second.host, 88, 1)
        older.__exit__(None, None, None)
        assert [path.name for path in tmp_path.iterdir()] == ["lease-2.json"]  # the newer one's is not removed
        with refused(UserError, second.pid, 88):
            seconds_to_acquire(tmp_path, replace(first, token="late"))
    assert len(lost) == 1


def test_a_loss_is_found_at_once(tmp_path):
    first, second = replace(ELSEWHERE, job="88", attempt=0), replace(HERE, job="88", attempt=1)
    assert find_loss(tmp_path, first) is None
    abandon(tmp_path, first)
    assert find_loss(tmp_path, first) is None
    abandon(tmp_path, second)
    assert_names(find_loss(tmp_path, first), tmp_path, second.pid, second.host, 88, 1)
    assert find_loss(tmp_path, second) is None
    assert find_loss(tmp_path / "missing", first) is None


def test_another_job_on_another_machine_does_not_take_over(tmp_path):
    with lease(tmp_path, replace(ELSEWHERE, job="88")) as theirs:
        theirs.acquire()
        with refused(UserError, 88, 0):
            seconds_to_acquire(tmp_path, replace(HERE, job="89", attempt=5))


def test_of_many_at_once_one_takes_over(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    abandon(tmp_path, replace(HERE, pid=other_process.pid, started=0.0, token="dead"))
    leases = [lease(tmp_path, replace(HERE, token=f"{number}")) for number in range(16)]
    begin = threading.Barrier(len(leases))

    def acquire(own: RunLease) -> bool:
        begin.wait()
        try:
            own.acquire()
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(len(leases)) as pool:
        won = list(pool.map(acquire, leases))
    assert sum(won) == 1
    leases[won.index(True)].__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_removed_is_written_again(tmp_path):
    with lease(tmp_path, HERE) as own:
        own.acquire()
        (tmp_path / "lease-1.json").unlink()
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_file_is_nobodys(tmp_path, content):
    (tmp_path / "lease-5.json").write_bytes(content)
    with lease(tmp_path, HERE) as own:
        own.acquire()
        assert [path.name for path in tmp_path.iterdir()] == ["lease-6.json"]


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_clock_that_is_hours_off_neither_costs_nor_saves_a_lease(tmp_path, hours):
    def hold() -> None:
        utime = os.utime

        def by_another_clock(path: Path) -> None:
            now = time.time() + 3600 * hours
            utime(path, (now, now))

        os.utime = by_another_clock
        RunLease(tmp_path, lambda problem: None, ELSEWHERE, HEARTBEAT).acquire()
        time.sleep(600)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    path = tmp_path / "lease-1.json"
    deadline = time.monotonic() + 60
    while not path.exists() or abs(path.stat().st_mtime - time.time()) < 3600:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with refused(UserError, tmp_path, "n7", 4711):
        seconds_to_acquire(tmp_path, expiry=3600)
    holder.kill()
    holder.join()
    assert 2 <= seconds_to_acquire(tmp_path, expiry=2) < 60
