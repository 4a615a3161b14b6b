"""Each case in a fork, as it ends the process."""

import os
import signal
import time

import pytest

from nar_scale.logging_setup import set_up_logging
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.fault_tolerance.preemption import (
    RESUMABLE_EXIT_STATUS,
    STOP_FILE_VARIABLE,
    StopRequest,
    exit_on_signals,
)

NEVER, SOON = 1e6, 0.05


def status_of(work):
    """How a process ends that does this and then sleeps."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        for number in (signal.SIGTERM, signal.SIGUSR1):  # other tests of this process may have left handlers
            signal.signal(number, signal.SIG_DFL)
        set_up_logging()
        try:
            work()
            while True:
                time.sleep(1)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def doing(name):
    activity = Activity()
    activity.enter(name)
    return activity


def installed(watch_file, activity, deadline_seconds):
    request = StopRequest(watch_file, activity, deadline_seconds)
    request.install()
    return request


def kill_self(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


def test_a_signal_is_remembered_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGUSR1)
    stop = installed(False, Activity(), NEVER)
    assert not stop
    kill_self(signal.SIGUSR1)
    assert stop
    stop.restore()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_same_signal_twice_ends_at_once_and_two_others_do_not():
    def twice():
        installed(False, Activity(), NEVER)
        kill_self(signal.SIGINT, signal.SIGTERM, signal.SIGTERM)

    assert status_of(twice) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("activity", "status"), [("starting", RESUMABLE_EXIT_STATUS), ("saving a checkpoint", 1), ("forward pass", 1)]
)
def test_the_deadline(activity, status, capfd):
    def asked():
        installed(False, doing(activity), SOON)
        kill_self(signal.SIGTERM)

    assert status_of(asked) == status
    message = f"train: error: asked to stop 0 s ago and still {activity}"
    assert (message in capfd.readouterr().err) is (status == 1)


def test_the_deadline_of_what_others_were_asked():
    assert status_of(lambda: installed(False, doing("reporting"), SOON).begin_deadline()) == 1


@pytest.mark.parametrize("watched", [True, False])
def test_the_file(tmp_path, monkeypatch, watched):
    monkeypatch.setenv(STOP_FILE_VARIABLE, str(tmp_path / "stop"))
    stop = installed(watched, Activity(), NEVER)
    assert not stop
    (tmp_path / "stop").touch()
    assert bool(stop) is watched
    stop.restore()


def test_the_deadline_after_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv(STOP_FILE_VARIABLE, str(tmp_path / "stop"))
    (tmp_path / "stop").touch()
    assert status_of(lambda: installed(True, doing("reporting"), SOON)) == 1


def test_a_signal_is_heard_while_no_python_runs_in_the_main_thread():
    def blocked():
        stop = installed(False, doing("reporting"), SOON)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        child = os.fork()
        if child == 0:
            time.sleep(0.1)
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        del stop
        held_up(3)

    assert status_of(blocked) == 1


def held_up(seconds):
    """Sleep as a collective does: signals arrive, but Python's handlers do not run."""
    import ctypes

    libc = ctypes.CDLL(None)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        libc.usleep(10_000_000)


def test_a_child_keeps_its_signals_to_itself():
    def parent():
        installed(False, doing("reporting"), SOON)
        child = os.fork()
        if child == 0:
            kill_self(signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(10 * SOON)
        os._exit(7)

    assert status_of(parent) == 7


@pytest.mark.parametrize(("file", "status"), [("", RESUMABLE_EXIT_STATUS), ("stop", -signal.SIGTERM)])
def test_before_a_run_begins_a_signal_is_a_reason_to_come_back_but_where_a_file_asks(monkeypatch, file, status):
    def asked():
        exit_on_signals()
        kill_self(signal.SIGTERM)

    monkeypatch.setenv(STOP_FILE_VARIABLE, file)
    assert status_of(asked) == status


@pytest.mark.parametrize(("left", "is_main", "warned"), [(50, True, True), (50, False, False), (150, True, False)])
def test_the_end_of_a_job_before_the_deadline_is_announced(monkeypatch, capfd, left, is_main, warned):
    def asked():
        installed(is_main, doing("reporting"), 100)
        kill_self(signal.SIGUSR1)
        time.sleep(0.2)
        kill_self(signal.SIGUSR1)

    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + left))
    assert status_of(asked) == -signal.SIGUSR1
    lines = [line for line in capfd.readouterr().err.splitlines() if "SLURM ends the job in" in line]
    assert len(lines) == warned
    assert all("before faults.stop_deadline_seconds 100 are over" in line for line in lines)
