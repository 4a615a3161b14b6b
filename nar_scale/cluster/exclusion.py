"""Which nodes the next attempt of a job is to do without."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_USABLE = ("allocated", "completing", "idle", "mixed", "planned")


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        name: its name.
        state: in the words of `sinfo`, such as `idle` or `down*`.
        kind: its CPUs, memory, devices and features; nodes of the same kind can take each other's place.
    """

    name: str
    state: str
    kind: str

    @property
    def is_usable(self) -> bool:
        """Whether jobs are started on it, now or once others have ended."""
        return self.state.startswith(_USABLE) and not self.state.endswith("*")


def nodes_to_exclude(
    suspects: Sequence[str], of_job: Sequence[str], excluded: Collection[str], partition: Sequence[Node]
) -> tuple[str, ...]:
    """The suspects, if SLURM can find as many other nodes as the job has had; else none, so that the job can go on.

    Where all nodes of a job of several are suspect, it is rather the job that is to blame, and none is left out.

    Args:
        suspects: nodes that may be the reason why the attempt has failed.
        of_job: all nodes of the attempt.
        excluded: which the job does without already.
        partition: all nodes of the partition that the job has run in.
    """
    if len(of_job) > 1 and set(of_job) <= set(suspects):
        return ()
    kinds = {node.kind for node in partition if node.name in of_job}
    left_out = {*suspects, *excluded}
    left = [node for node in partition if node.is_usable and node.kind in kinds and node.name not in left_out]
    return tuple(suspects) if len(left) >= len(of_job) else ()
