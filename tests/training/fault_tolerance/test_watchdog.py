"""Each case in a fork, as a watchdog ends the process. Two ranks: tests/distributed/test_faults.py."""

import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from nar_scale.config import FaultsConfig
from nar_scale.logging_setup import set_up_logging
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.fault_tolerance.watchdog import Watchdog


def ending_of(directory, work, store=None, **limits):
    """The exit status of a process that does this, watched."""
    pid = os.fork()
    if pid == 0:
        set_up_logging()
        try:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # or it says so where the name of the host is not known
            store = dist.TCPStore(*store) if store else dist.HashStore()
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            activity = Activity()
            with Watchdog(activity, SimpleNamespace(rank=0, size=1), directory, FaultsConfig(**limits)):
                work(activity)
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sleep_in(name, seconds, steps=1):
    def work(activity):
        activity.steps = steps
        activity.enter(name)
        time.sleep(seconds)

    return work


def test_a_part_of_a_step_that_takes_too_long(tmp_path, capfd):
    work = sleep_in("backward pass", 60)
    assert ending_of(tmp_path, work, step_timeout_seconds=0.3, long_timeout_seconds=1000.0) == 1
    assert "in work" in (tmp_path / "stacks" / "rank-0.txt").read_text()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("train: error: nothing has moved for ")
    assert f"in 'backward pass'; the stacks of all ranks are in {tmp_path}/stacks;" in line


@pytest.mark.parametrize(("name", "steps"), [("backward pass", 0), ("saving a checkpoint", 1), ("evaluation", 1)])
def test_the_first_step_and_what_is_no_step_have_more_time(tmp_path, name, steps):
    work = sleep_in(name, 0.5, steps)
    assert ending_of(tmp_path, work, step_timeout_seconds=0.1, long_timeout_seconds=1000.0) == 0
    assert not (tmp_path / "stacks").exists()


def test_but_not_for_ever(tmp_path):
    work = sleep_in("evaluation", 60)
    assert ending_of(tmp_path, work, step_timeout_seconds=0.1, long_timeout_seconds=0.3) == 1


def test_starting_up_may_take_as_long_as_it_likes(tmp_path):
    limits = {"step_timeout_seconds": 0.1, "long_timeout_seconds": 0.1}
    assert ending_of(tmp_path, lambda activity: time.sleep(0.5), **limits) == 0


def test_many_short_activities_are_fine(tmp_path):
    def work(activity):
        activity.steps = 1
        for _ in range(12):
            activity.enter("forward pass")
            time.sleep(0.05)

    assert ending_of(tmp_path, work, step_timeout_seconds=30.0, long_timeout_seconds=30.0) == 0


def test_a_rank_does_not_wait_for_one_that_is_out_of_reach(tmp_path, capfd):
    """A stopped process answers nothing, and no connection to it is closed: as where a link is lost silently."""
    reading, writing = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        try:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            os.write(writing, str(store.port).encode())
            time.sleep(1000)
        finally:
            os._exit(0)
    try:
        port = int(os.read(reading, 10))

        def lose_the_link(activity):
            os.kill(keeper, signal.SIGSTOP)
            time.sleep(0.2)  # the listener asks
            sleep_in("backward pass", 1000)(activity)

        store = ("127.0.0.1", port)
        limits = {"step_timeout_seconds": 0.5, "long_timeout_seconds": 1000.0}
        assert ending_of(tmp_path, lose_the_link, store=store, **limits) == 1
    finally:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"rank 0 on {socket.gethostname()}: nothing has moved for " in line
    assert "the node of rank 0, or the network to it, does not answer" in line
    assert "in lose_the_link" in (tmp_path / "stacks" / "rank-0.txt").read_text()
