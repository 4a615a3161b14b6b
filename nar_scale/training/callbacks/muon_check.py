"""Makes sure that Muon moves the matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nar_scale.errors import UserError
from nar_scale.model.parameters import full_size, muon_matrices
from nar_scale.training.engine.muon_layout import whole_weight
from nar_scale.training.trainer import Trainer

_LARGEST_SINGULAR_VALUE = (0.6, 1.4)


class MuonCheck:
    """Makes sure, as a hook of the trainer, that the first step moves a matrix by an orthogonal one.

    The largest singular value of the change, over learning rate and scale, must be about 1: it is far above for
    AdamW, which moves each element as much, and far below for clipped gradients. Done for the smallest matrix, where
    there are float32 weights.

    Args:
        engine: which has taken no step since the weights were set.
    """

    def __init__(self, engine: Any):
        matrices = muon_matrices(engine.module)
        self.name = min(matrices, key=lambda name: (full_size(matrices[name]), name))
        self.parameter = matrices[self.name]
        before = whole_weight(self.parameter)
        # in bfloat16 a small step is lost in rounding
        self.before: Tensor | None = before if before.dtype == torch.float32 else None

    def after_step(self, trainer: Trainer) -> None:
        """Look at the first step that changes the weights.

        Raises:
            UserError: it is no orthogonal one.
        """
        if self.before is None or not trainer.engine.was_step_applied():
            return
        (group,) = (group for group in trainer.engine.optimizer.param_groups if group.get("use_muon"))
        if not group["lr"]:
            return
        before, after = self.before, whole_weight(self.parameter)
        self.before = None
        change = before * (1 - group["lr"] * group["weight_decay"]) - after
        scale = group["lr"] * max(1.0, before.shape[0] / before.shape[1]) ** 0.5
        largest = float(torch.linalg.matrix_norm(change, 2)) / scale
        low, high = _LARGEST_SINGULAR_VALUE
        if largest and not low < largest < high:
            raise UserError(
                f"the first step has moved {self.name} by {largest:.3g} times the learning rate of Muon instead of "
                "about once: Muon has not taken effect; set optimizer.kind adamw"
            )

    def at_end(self, trainer: Trainer) -> None:
        """Nothing more to see."""
