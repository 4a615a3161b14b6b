"""All ranks stop after the same step, whichever of them was asked to."""

from __future__ import annotations

import torch

from nar_scale.training.distributed import AllReducedFlags, World
from nar_scale.training.fault_tolerance.preemption import StopRequest


class StopAgreement:
    """Requests of single ranks, and whether all have agreed to take no further step.

    A rank cannot stop by itself: the others would wait for it. The requests are summed over
    all ranks, and all act on the same sum.

    Args:
        request: of this rank.

    Attributes:
        agreed: whether all ranks have agreed.
    """

    def __init__(self, request: StopRequest, world: World) -> None:
        self._request, self._world = request, world
        self.agreed = False

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return bool(self._request)

    def request(self) -> None:
        """Ask this rank to stop; the others learn of it from the next sum."""
        self._request.request()

    def poll(self) -> AllReducedFlags:
        """How many ranks were asked to stop; a collective."""
        return AllReducedFlags(self._world.all_reduce(torch.tensor([float(self.requested)], device=self._world.device)))

    def agree(self) -> None:
        """Note that all ranks know of a request, and begin the deadline of this one."""
        self.agreed = True
        self._request.begin_deadline()
