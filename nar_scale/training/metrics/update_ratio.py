"""How far an optimizer step moves the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from nar_scale.training.distributed import World


class UpdateRatio:
    """Measures, in the steps that are reported, the norm of the update over the norm of the weights before it.

    Seen from torch's optimizer, which under every ZeRO stage steps what this rank holds of the master weights, be it
    one group of parameters after the other, on the host, or fetched from NVMe for the moment. They are copied before
    the step and compared after it, so the ratio is that of any optimizer, with weight decay and clipping. The copy, the
    size of what one call steps, lives for the length of that call, when no activations are held.

    Args:
        engine: a DeepSpeed engine.
        wanted: whether the step that is being taken is one to measure.
    """

    def __init__(self, engine: Any, wanted: Callable[[], bool]):
        self._wanted = wanted
        self._copies: list[Tensor] = []
        self._squares: Tensor | None = None
        optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        optimizer.register_step_pre_hook(self._copy)
        optimizer.register_step_post_hook(self._compare)

    @torch.no_grad()
    def _copy(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._wanted():
            self._copies = [weight.detach().clone() for weight in _weights(optimizer)]

    @torch.no_grad()
    def _compare(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._copies:  # also when the step of an optimizer is called by that of one derived from it
            return
        norm = get_total_norm(self._copies)
        for copy, weight in zip(self._copies, _weights(optimizer)):
            copy.sub_(weight)
        squares = torch.stack((get_total_norm(self._copies), norm)).double().square()
        self._squares = squares if self._squares is None else self._squares + squares
        self._copies = []

    def take(self, world: World) -> dict[str, float]:
        """The ratio of the last step over all ranks, as `update_ratio`; empty if it was not measured or not taken.

        Weights that every rank holds count once for each of them, above and below the line.
        """
        squares = torch.zeros(2, dtype=torch.float64) if self._squares is None else self._squares
        self._squares = None
        update, weights = world.sum(squares.to(world.device)).sqrt().tolist()
        return {"update_ratio": update / weights} if weights else {}


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]
