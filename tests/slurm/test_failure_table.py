"""Each message of the table in slurm/README.md is what a test expects of the code."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed import test_faults
from tests.slurm import test_generate_array, test_nodes, test_time_limit, test_train
from tests.slurm import test_run_lease as lease_on_slurm
from tests.slurm import test_supervisor as supervisor_on_slurm
from tests.training import test_first_exchange, test_preflight, test_rendezvous
from tests.training.fault_tolerance import test_preemption

PAGE = Path(__file__).parents[2] / "slurm" / "README.md"
ROWS = [line for line in PAGE.read_text().partition("| What you see |")[2].splitlines()[2:] if line.startswith("|")]
MESSAGES = [match[1] if (match := re.match(r"\| `(.+?)` \| .+ \|$", row)) else row for row in ROWS]

# in the order of the table, without hosts, numbers and what is left out
TESTS: dict[str, Callable[..., None]] = {
    "no launcher/train.py in": test_generate_array.test_submitted_elsewhere_is_one_clear_line,
    ": waiting for | port": test_rendezvous.test_ranks_wait_for_each_other_and_say_for_whom,
    ": waiting for": test_nodes.test_a_node_that_does_not_know_the_first_one_is_named,
    "knows no host of the name": test_nodes.test_a_node_that_does_not_know_the_first_one_is_named,
    "the ranks have met, but | has not ended in": (
        test_first_exchange.test_a_lost_packet_ends_the_process_with_the_remedy
    ),
    "is not like": test_nodes.test_a_node_with_other_settings_libraries_and_code_is_named,
    "runs, does not have the shards of": test_train.TestTraining.test_preflight_names_the_node_that_lacks_shards,
    "does not see what | has written to the run directory": (
        test_nodes.test_a_node_with_a_run_directory_of_its_own_is_named
    ),
    "has | most nodes have": test_preflight.test_a_node_with_other_devices_is_named,
    "GiB for data.cache_directory": test_preflight.test_a_disk_without_room_for_the_copies_of_shards_is_named,
    "is slow:": test_preflight.test_slow_nodes_are_named,
    "attempt(s) in a row without a new checkpoint": test_time_limit.test_a_start_that_takes_too_long_ends_the_job,
    "attempt(s) in a row without a result": test_generate_array.test_attempts_without_a_result_are_bounded,
    "was killed": test_generate_array.test_a_killed_worker_does_not_keep_the_others_from_going_on,
    "is in use by": lease_on_slurm.test_of_two_jobs_the_second_is_refused,
    "has been taken over by": (
        lease_on_slurm.test_a_requeued_job_takes_over_from_the_attempt_on_a_node_that_was_cut_off
    ),
    "the ranks meet at port": test_rendezvous.test_two_steps_on_the_same_nodes_meet_at_different_ports,
    "asked to stop | s ago and still": test_preemption.test_the_deadline,
    "SLURM ends the job in | before faults.stop_deadline_seconds": (
        test_preemption.test_the_end_of_a_job_before_the_deadline_is_announced
    ),
    "is in | and has kept | waiting": test_faults.test_a_rank_that_sleeps_is_named_and_all_leave_their_stacks,
    "or the network to it, does not answer": test_nodes.test_a_run_whose_link_is_cut_goes_on_once_it_is_back,
    "the connection to another process was lost": test_faults.test_survivors_of_a_killed_rank_say_so,
    "which is left out of the next attempts": (
        supervisor_on_slurm.test_a_node_that_fails_is_left_out_while_others_are_there
    ),
    ": the job cannot go on without it": supervisor_on_slurm.test_a_node_that_fails_is_left_out_while_others_are_there,
    "controller does not answer": (supervisor_on_slurm.test_a_stop_while_the_controller_is_down_ends_in_a_requeue),
    "no requeue ( | submit again to go on": supervisor_on_slurm.test_a_chain_ends_at_once_when_the_run_is_complete,
    "is complete, nothing is left to train": supervisor_on_slurm.test_a_chain_ends_at_once_when_the_run_is_complete,
}


@pytest.mark.parametrize(
    ("message", "parts", "test"), list(zip(MESSAGES, TESTS, TESTS.values(), strict=True)), ids=TESTS
)
def test_a_message_of_the_table_is_what_a_test_expects(message: str, parts: str, test: Callable[..., None]) -> None:
    source = inspect.getsource(test)
    position = 0
    for part in parts.split(" | "):
        position = message.index(part, position) + len(part)
        assert part in source, f"{test.__name__} expects no {part!r}"


def test_the_table_is_found() -> None:
    assert len(MESSAGES) >= 20
    assert not [message for message in MESSAGES if message.startswith("|")]
