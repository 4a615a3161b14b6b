"""Each rank a fork."""

import os
import shutil
import socket
import time

import pytest
import torch.distributed as dist

from nar_scale.errors import UserError
from nar_scale.logging_setup import set_up_logging
from nar_scale.training import rendezvous
from nar_scale.training.rendezvous import StoppedError, host_of, meet
from tests.distributed.jobs import free_port

TAKES_LONGER = 3  # as long as a rank needs to start, and longer than until it is told whom others wait for


def start(environment, rank, port, delay=0.0):
    pid = os.fork()
    if pid:
        return pid
    try:
        set_up_logging()
        rendezvous._TELL_SECONDS = 1.0
        rendezvous._ANSWER_SECONDS = 2.0
        time.sleep(delay)
        store = meet(
            {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "0",
                **environment,
            }
        )
        store.set(f"done/{rank}", "")
        store.wait(["done/0", "done/1"])
        time.sleep(0.3 if rank == 0 else 0)
        os._exit(0)
    except StoppedError:
        os._exit(85)
    except UserError as error:
        os.write(2, str(error).encode())
        os._exit(2)
    finally:
        os._exit(1)


def statuses(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def srun(job):
    return {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_wait_for_each_other_and_say_for_whom(first, capfd):
    port = free_port()
    delays = [TAKES_LONGER, TAKES_LONGER]
    delays[first] = 0
    assert statuses(*(start({}, rank, port, delays[rank]) for rank in range(2))) == [0, 0]
    lines = capfd.readouterr().err.splitlines()
    assert lines
    whom = f"rank 0 on 127.0.0.1, port {port}: " if first else "rank 1 "
    assert all(f"{socket.gethostname()}: waiting for {whom}" in line for line in lines)


def test_two_steps_on_the_same_nodes_meet_at_different_ports(capfd):
    port = free_port()
    with socket.socket() as silent:
        silent.bind(("", port))
        silent.listen()
        other = dist.TCPStore("127.0.0.1", port + 1, 2, is_master=True, wait_for_workers=False)
        other.set("nar_scale/job", "another")
        assert statuses(*(start(srun(7), rank, port) for rank in range(2))) == [0, 0]
    assert f"the ranks meet at port {port + 2} of 127.0.0.1" in capfd.readouterr().out


def test_a_port_that_nobody_can_change_is_named(capfd):
    port = free_port()
    with socket.socket() as silent:
        silent.bind(("", port))
        silent.listen()
        assert statuses(start({}, 0, port)) == [2]
    assert f"port {port} of 127.0.0.1" in capfd.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_the_stop_file_ends_the_wait(tmp_path, rank):
    stop = tmp_path / "stop"
    waiting = start({"NAR_SCALE_STOP_FILE": str(stop)}, rank, free_port())
    time.sleep(0.5)
    stop.touch()
    assert statuses(waiting) == [85]


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="no scontrol here")
def test_hosts_are_those_that_slurm_has_placed_ranks_on(tmp_path, monkeypatch):
    (tmp_path / "slurm.conf").write_text("ClusterName=test\nSlurmctldHost=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    layout = {"SLURM_STEP_NODELIST": "n[1-3],m7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}
    assert [host_of(rank, layout) for rank in range(8)] == ["n1", "n1", "n2", "n2", "n3", "n3", "m7", ""]
    assert host_of(0, {}) == ""
