"""What becomes of generation jobs. With real workers, on a real cluster: tests/slurm/test_generate_array.py."""

import pytest

from nar_scale.cluster.endings import NO_RESULT_YET, Ending, Kind
from nar_scale.cluster.generation import (
    ATTEMPTS_WITHOUT_RESULT,
    GenerationSupervisor,
    decide_generation,
    stopped_too_early,
)
from nar_scale.processes import RESUMABLE_EXIT_STATUS

COMPLETE = Ending(0, "n1", Kind.COMPLETE)
COMMITTED = Ending(0, "n1", Kind.STOPPED)
TOO_EARLY = Ending(1, "n2", Kind.STOPPED, NO_RESULT_YET)
KILLED = Ending(2, "n3", Kind.RUNNING)
WRONG = Ending(3, "n4", Kind.USER_ERROR, "no such device: cuda")


@pytest.mark.parametrize(
    ("status", "endings", "in_vain", "requeue", "exit_status"),
    [
        (0, [COMPLETE], 0, False, 0),
        (0, [], 0, False, 0),
        (137, [COMPLETE, KILLED], 0, False, 0),
        (85, [COMPLETE, TOO_EARLY, WRONG], 0, False, 0),
        (85, [COMMITTED], 0, True, 85),
        (85, [], 0, True, 85),
        (137, [COMMITTED, KILLED], 0, True, 85),
        (85, [COMMITTED, TOO_EARLY], 0, True, 85),
        (85, [COMMITTED, WRONG], 0, True, 85),
        (None, [COMMITTED], 0, True, 85),
        (85, [TOO_EARLY], 1, True, 85),
        (137, [TOO_EARLY, KILLED], ATTEMPTS_WITHOUT_RESULT - 1, True, 85),
        (85, [TOO_EARLY], ATTEMPTS_WITHOUT_RESULT, False, 1),
        (137, [KILLED], 0, False, 137),
        (2, [WRONG], 0, False, 2),
        (None, [], 0, False, 1),
    ],
)
def test_what_becomes_of_a_job(status, endings, in_vain, requeue, exit_status):
    assert RESUMABLE_EXIT_STATUS == 85
    decision = decide_generation(status, endings, in_vain)
    assert (decision.requeue, decision.status) == (requeue, exit_status)


def test_an_attempt_in_which_any_worker_has_made_something_is_not_in_vain():
    assert stopped_too_early([TOO_EARLY, KILLED])
    assert not stopped_too_early([COMMITTED, TOO_EARLY])
    assert not stopped_too_early([KILLED, WRONG])
    assert not stopped_too_early([])


def test_the_worker_that_failed_is_named():
    assert decide_generation(2, [WRONG], 0).why == "worker 3 on n4: no such device: cuda"


@pytest.mark.parametrize(
    ("environment", "job"),
    [({}, "9"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3")],
    ids=["a job", "a task of an array"],
)
def test_the_job_as_slurm_knows_it(tmp_path, environment, job):
    assert GenerationSupervisor([], {"SLURM_JOB_ID": "9", **environment}, tmp_path).job.job == job
