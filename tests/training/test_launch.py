"""How a rank that fails says so; in a fork, whose handlers of signals and whose environment end with it."""

import os
import socket
from importlib import import_module

import pytest

from nar_scale.errors import UserError
from nar_scale.training import launch
from tests.errors import assert_names


def launch_that_fails(error, **environment):
    """The exit status of the first rank of a job, whose configuration cannot be read for the reason `error`."""
    pid = os.fork()
    if pid == 0:
        try:

            def fail(*_):
                raise error

            job = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
            os.environ.update({**job, **environment})
            import_module("nar_scale.training.launch").load_config = fail
            os._exit(launch("config.yaml"))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("error", "status"), [(UserError("no such key"), 2), (RuntimeError("a surprise"), 1)])
def test_an_error_names_rank_and_host_where_there_are_several_nodes(capfd, error, status):
    named = f"(rank 0 on {socket.gethostname()})"
    assert launch_that_fails(error, LOCAL_WORLD_SIZE="1") == status
    *_, line = capfd.readouterr().err.splitlines()
    assert_names(line, str(error), named)
    assert launch_that_fails(error, LOCAL_WORLD_SIZE="2") == status
    *_, line = capfd.readouterr().err.splitlines()
    assert_names(line, str(error))
    assert named not in line
