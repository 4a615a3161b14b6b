"""In a fork, which the block ends."""

import os
import time

import pytest

from nar_scale.cluster.endings import ATTEMPT_DIRECTORY_VARIABLE, Kind, read_endings
from nar_scale.logging_setup import set_up_logging
from nar_scale.training import first_exchange as module
from nar_scale.training.first_exchange import first_exchange
from tests.errors import assert_names


def status_of(directory, seconds):
    """The exit status of a rank whose first exchange takes so many seconds, and may take one."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update({ATTEMPT_DIRECTORY_VARIABLE: str(directory), "RANK": "0", "WORLD_SIZE": "10"})
            set_up_logging()
            module._TELL_SECONDS, module._LONGEST_SECONDS, module._LOOK_UPS_A_SECOND = 0.1, 0.5, 200.0
            with first_exchange("the check of the nodes", 10):
                time.sleep(seconds)
            os._exit(0)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_lost_packet_ends_the_process_with_the_remedy(tmp_path, capfd):
    assert status_of(tmp_path, 600) == 1
    told, error = capfd.readouterr().err.splitlines()
    assert_names(told, "the check of the nodes takes long")
    assert_names(
        error,
        "the ranks have met, but the check of the nodes has not ended in 1 s",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
    )
    (ending,) = read_endings(tmp_path)
    assert ending.kind is Kind.HANG
    assert_names(ending.why, "the check of the nodes")


@pytest.mark.parametrize(("seconds", "lines"), [(0, 0), (0.3, 1)])
def test_what_ends_in_time_goes_on(tmp_path, capfd, seconds, lines):
    assert status_of(tmp_path, seconds) == 0
    assert len(capfd.readouterr().err.splitlines()) == lines
