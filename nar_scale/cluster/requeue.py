"""Puts a job back into the queue, without the nodes that may be the reason why its attempt has failed."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

from nar_scale.cluster.decision import Decision
from nar_scale.cluster.exclusion import nodes_to_exclude
from nar_scale.cluster.slurm import SlurmJob, UnreachableError
from nar_scale.errors import UserError

_logger = logging.getLogger(__name__)
_NONE = ("", "(null)")


def put_back(job: SlurmJob, attempt: int, nodes: str, decision: Decision) -> None:
    """Requeue the job that this process belongs to, or say why that is impossible.

    SLURM kills what is left of a requeued job after `KillWait`; a batch script that ends by itself is not waited for.

    Args:
        job: as its batch script sees it.
        attempt: how often SLURM has put it back into the queue.
        nodes: of the attempt, in SLURM's notation.
        decision: why it is requeued, and which nodes are suspect.
    """
    try:
        described = job.describe()
        if described.get("JobState") != "RUNNING":  # scancel has ended it, and it stays ended
            _logger.info("%s; the job is %s, not requeued", decision.why, described.get("JobState", "gone"))
        elif described.get("Restarts", str(attempt)) != str(attempt):
            _logger.info("%s; SLURM has already started the next attempt", decision.why)
        else:
            before = _hosts(job, described.get("ExcNodeList", ""))
            without = _nodes_to_exclude(job, nodes, decision.suspects, before, described)
            _logger.info("%s; requeued to go on", decision.why)
            # SLURM sends it to all processes of a job that is requeued, the command that asks for it included
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            job.requeue()
            _leave_out(job, decision.suspects, without, before)
    except (UserError, UnreachableError) as error:
        _logger.error("%s, but no requeue (%s); submit again to go on", decision.why, error)
        if decision.suspects:
            _logger.warning("look at %s", submit_without(decision.suspects))


def submit_without(nodes: Sequence[str]) -> str:
    """Names nodes, and how a new job is submitted that does without them."""
    names = ",".join(nodes)
    return f"{names}; to leave it out of the next job: sbatch --exclude={names}"


def _nodes_to_exclude(
    job: SlurmJob, nodes: str, suspects: Sequence[str], excluded: Sequence[str], described: dict[str, str]
) -> tuple[str, ...]:
    """Those of the suspects that the next attempt can do without."""
    bound_to_nodes = any(described.get(key, "") not in _NONE for key in ("ReqNodeList", "Reservation"))
    if not suspects or bound_to_nodes:
        return ()
    return nodes_to_exclude(suspects, job.hosts(nodes), excluded, job.nodes(described.get("Partition", "")))


def _leave_out(job: SlurmJob, suspects: Sequence[str], without: Sequence[str], before: Sequence[str]) -> None:
    """Exclude nodes from the next attempt of a job that has been requeued: SLURM allows it for pending jobs alone."""
    if not suspects:
        return
    names = ",".join(suspects)
    if not without:
        _logger.warning("look at %s: the job cannot go on without it, so the next attempt may have it again", names)
        return
    try:
        job.exclude([*before, *without])
    except (UserError, UnreachableError) as error:
        _logger.warning("look at %s, which is not left out of the next attempt (%s)", names, error)
    else:
        _logger.warning(
            "look at %s, which is left out of the next attempts; to have it back while the job is PENDING: "
            "scontrol update JobId=%s ExcNodeList=%s",
            *(names, job.job, ",".join(before)),
        )


def _hosts(job: SlurmJob, nodes: str) -> list[str]:
    return [] if nodes in _NONE else job.hosts(nodes)
