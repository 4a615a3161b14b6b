"""What becomes of a job whose tasks have ended: whether it goes on, and the line that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nar_scale.cluster.attempts import COMPLETE
from nar_scale.cluster.endings import Ending, Kind
from nar_scale.processes import RESUMABLE_EXIT_STATUS

ATTEMPTS_WITHOUT_STEP = 3
"""So many attempts of a run in a row, of one job or of a chain of jobs, may end without a new checkpoint."""

_KILLED = 128  # srun adds the number of the signal


@dataclass(frozen=True)
class Decision:
    """What becomes of a job.

    Attributes:
        requeue: whether it goes back into the queue.
        status: the exit status where it does not, or cannot.
        why: how the attempt ended, in a line.
        suspects: nodes that may be the reason, to be left out of the next attempt.
    """

    requeue: bool
    status: int
    why: str
    suspects: tuple[str, ...] = ()


def decide(status: int | None, endings: Sequence[Ending], lost_nodes: Sequence[str]) -> Decision:
    """What becomes of a job, from how its tasks have ended, regardless of earlier attempts.

    A rank's own words count more than `srun`'s status, which is the highest of all tasks: an error that would be met
    again ends the job, whatever the others say; ranks that have lost another one put it back into the queue.

    Args:
        status: of `srun`; None where it had to be killed.
        endings: what the ranks have reported last.
        lost_nodes: nodes of the job that SLURM knows to be gone.
    """
    if status == 0:
        return Decision(False, 0, COMPLETE)
    by_kind = {kind: [ending for ending in endings if ending.kind is kind] for kind in Kind}
    if by_kind[Kind.USER_ERROR]:
        return Decision(False, 2, str(by_kind[Kind.USER_ERROR][0]))
    if by_kind[Kind.ERROR] and not lost_nodes:
        return Decision(False, 1, str(by_kind[Kind.ERROR][0]))
    silent = by_kind[Kind.RUNNING]  # killed, on a node that is gone, or out of reach
    everything_saved = by_kind[Kind.STOPPED] and not silent and not by_kind[Kind.PEER_LOST] and not by_kind[Kind.HANG]
    if everything_saved or (status == RESUMABLE_EXIT_STATUS and not silent):
        too_early = [ending for ending in by_kind[Kind.STOPPED] if ending.why]  # to have anything to save
        return Decision(True, RESUMABLE_EXIT_STATUS, str(too_early[0]) if too_early else "saved")
    suspects = {*lost_nodes, *(ending.host for ending in silent)}
    if lost_nodes or silent:
        nodes = f"lost {', '.join(lost_nodes)}; " if lost_nodes else ""
        ranks = "; ".join(f"rank {ending.rank} on {ending.host} ended without a word" for ending in silent[:4])
        why = f"{nodes}{ranks}".removesuffix("; ")
    elif by_kind[Kind.HANG] or by_kind[Kind.PEER_LOST]:
        why = str([*by_kind[Kind.HANG], *by_kind[Kind.PEER_LOST]][0])
    elif status is None or status > _KILLED:
        why = "srun did not return" if status is None else f"a task was ended by signal {status - _KILLED}"
    else:
        return Decision(False, status, f"a task ended with status {status}")
    return Decision(True, 1, why, tuple(sorted(suspects)))


def bounded(decision: Decision, attempts: int, step: int) -> Decision:
    """The same decision, but for a job whose attempts come to nothing, which ends.

    Args:
        attempts: of the run that have ended in a row without a new checkpoint, this one included.
        step: of the newest checkpoint; 0 for none.
    """
    if not decision.requeue or attempts < ATTEMPTS_WITHOUT_STEP:
        return decision
    return Decision(False, 1, f"{no_progress(attempts, step)}; the last one: {decision.why}", decision.suspects)


def no_progress(attempts: int, step: int) -> str:
    """Says that attempts of a run have added nothing to the newest checkpoint."""
    checkpoint = f"the newest checkpoint is still that of step {step}" if step else "there is still no checkpoint"
    return f"{attempts} attempt(s) in a row without a new checkpoint: {checkpoint}"
