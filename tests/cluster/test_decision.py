import pytest

from nar_scale.cluster.decision import ATTEMPTS_WITHOUT_STEP, bounded, decide
from nar_scale.cluster.endings import Ending, Kind
from nar_scale.processes import RESUMABLE_EXIT_STATUS
from tests.errors import assert_names

SAVED = Ending(0, "n1", Kind.STOPPED)
LOST = Ending(0, "n1", Kind.PEER_LOST, "the connection was lost")
SILENT = Ending(1, "n2", Kind.RUNNING)
WRONG = Ending(1, "n2", Kind.USER_ERROR, "no shards in data/")
CRASHED = Ending(1, "n2", Kind.ERROR, "RuntimeError: a surprise")


@pytest.mark.parametrize(
    ("status", "endings", "lost_nodes", "requeue", "exit_status"),
    [
        (0, [], [], False, 0),
        (RESUMABLE_EXIT_STATUS, [], [], True, RESUMABLE_EXIT_STATUS),
        (None, [SAVED], [], True, RESUMABLE_EXIT_STATUS),
        (RESUMABLE_EXIT_STATUS, [SAVED, WRONG], [], False, 2),
        (RESUMABLE_EXIT_STATUS, [SAVED, CRASHED], [], False, 1),
        (137, [LOST, WRONG], ["n2"], False, 2),
        (1, [LOST, CRASHED], [], False, 1),
        (1, [LOST, CRASHED], ["n2"], True, 1),
        (137, [LOST, SILENT], [], True, 1),
        (1, [LOST], [], True, 1),
        (1, [Ending(0, "n1", Kind.HANG, "nothing has moved")], [], True, 1),
        (None, [LOST, SILENT], [], True, 1),
        (None, [], [], True, 1),
        (137, [], [], True, 1),
        (3, [], [], False, 3),
    ],
)
def test_what_becomes_of_a_job(status, endings, lost_nodes, requeue, exit_status):
    decision = decide(status, endings, lost_nodes)
    assert (decision.requeue, decision.status) == (requeue, exit_status)


def test_the_line_names_rank_and_host():
    assert_names(decide(85, [SAVED, WRONG], []).why, "rank 1 on n2", "no shards in data/")
    assert_names(decide(1, [LOST, SILENT], []).why, "rank 1 on n2")
    assert_names(decide(1, [LOST], []).why, "rank 0 on n1", "the connection was lost")
    assert_names(decide(137, [], []).why, 9)
    assert_names(decide(1, [], ["n3"]).why, "n3")


def test_a_rank_that_was_stopped_before_there_was_anything_to_save_says_so():
    assert decide(85, [SAVED, SAVED], []).why == "saved"
    early = Ending(0, "n1", Kind.STOPPED, "asked to stop before its ranks had met")
    decision = decide(85, [early], [])
    assert_names(decision.why, "rank 0 on n1: asked to stop before its ranks had met")
    assert (decision.requeue, decision.status) == (True, RESUMABLE_EXIT_STATUS)


def test_suspects_are_lost_nodes_and_those_of_silent_ranks():
    assert decide(1, [LOST, SILENT], ["n3"]).suspects == ("n2", "n3")
    assert decide(1, [LOST], []).suspects == ()


def test_attempts_that_come_to_nothing_are_bounded():
    again = decide(1, [LOST, SILENT], [])
    assert bounded(again, ATTEMPTS_WITHOUT_STEP - 1, 8) == again
    ended = bounded(again, ATTEMPTS_WITHOUT_STEP, 8)
    assert (ended.requeue, ended.status, ended.suspects) == (False, 1, ("n2",))
    assert_names(
        ended.why, f"{ATTEMPTS_WITHOUT_STEP} attempt(s) in a row without a new checkpoint", "step 8", "rank 1 on n2"
    )
    done = decide(0, [], [])
    assert bounded(done, ATTEMPTS_WITHOUT_STEP, 8) == done
