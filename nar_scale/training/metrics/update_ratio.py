"""How far an optimizer step moves the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from nar_scale.training.distributed import World
from nar_scale.training.engine.zero_engine import ZeroEngine


class UpdateRatio:
    """Measures, in the steps that are reported, the norm of the update over the norm of the weights before it.

    The master weights that this rank holds are copied before the step and compared after it, so the ratio is that of
    any optimizer, with weight decay and clipping. The copy, the size of what one call of the optimizer steps, lives for
    the length of that call, when no activations are held.
    """

    def __init__(self) -> None:
        self._wanted: Callable[[], bool] = lambda: False
        self._copies: list[Tensor] = []
        self._squares: Tensor | None = None

    def attach(self, engine: ZeroEngine, wanted: Callable[[], bool]) -> None:
        """Measure the steps of an engine from now on.

        Args:
            wanted: whether the step that is being taken is one to measure.
        """
        self._wanted = wanted
        engine.observe_optimizer(self._copy, self._compare)

    @torch.no_grad()
    def _copy(self, weights: list[Tensor]) -> None:
        if self._wanted():
            self._copies = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def _compare(self, weights: list[Tensor]) -> None:
        if not self._copies:  # also when the step of an optimizer is called by that of one derived from it
            return
        norm = get_total_norm(self._copies)
        for copy, weight in zip(self._copies, weights):
            copy.sub_(weight)
        squares = torch.stack((get_total_norm(self._copies), norm)).double().square()
        self._squares = squares if self._squares is None else self._squares + squares
        self._copies = []

    def take(self, world: World) -> dict[str, float]:
        """The ratio of the last step over all ranks, as `update_ratio`; empty if it was not measured or not taken.

        A collective. Weights that every rank holds count once for each of them, in the numerator and the denominator.
        """
        squares = torch.zeros(2, dtype=torch.float64) if self._squares is None else self._squares
        self._squares = None
        update, weights = world.all_reduce(squares.to(world.device)).sqrt().tolist()
        return {"update_ratio": update / weights} if weights else {}
