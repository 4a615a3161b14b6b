"""Makes sure that Muon steps the matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nar_scale.errors import UserError
from nar_scale.model.parameters import full_size, muon_matrices
from nar_scale.training.callbacks.callback import Callback, RunView

_LARGEST_SINGULAR_VALUE = (0.6, 1.4)


class MuonCheck(Callback):
    """Makes sure that the first step changes a matrix by an orthogonal one.

    The largest singular value of the change, over learning rate and scale, must be about 1: it is far above for
    AdamW, which moves each element as much, and far below for clipped gradients. Done for the smallest matrix, where
    there are float32 weights.
    """

    def __init__(self) -> None:
        self._name = ""
        self._parameter: nn.Parameter | None = None
        self._before: Tensor | None = None

    def on_run_start(self, run: RunView) -> None:
        """Keep a copy of the matrix."""
        matrices = muon_matrices(run.engine.module)
        self._name = min(matrices, key=lambda name: (full_size(matrices[name]), name))
        self._parameter = matrices[self._name]
        before = run.engine.whole_weight(self._parameter)
        # in bfloat16 a small step is lost in rounding
        self._before = before if before.dtype == torch.float32 else None

    def on_step_end(self, run: RunView) -> None:
        """Look at the first step that changes the weights.

        Raises:
            UserError: it is no orthogonal one.
        """
        if self._before is None or self._parameter is None or not run.engine.step_applied:
            return
        muon = run.engine.muon_settings
        if not muon.learning_rate:
            return
        before, after = self._before, run.engine.whole_weight(self._parameter)
        self._before = None
        change = before * (1 - muon.learning_rate * muon.weight_decay) - after
        scale = muon.learning_rate * max(1.0, before.shape[0] / before.shape[1]) ** 0.5
        largest = float(torch.linalg.matrix_norm(change, 2)) / scale
        low, high = _LARGEST_SINGULAR_VALUE
        if largest and not low < largest < high:
            raise UserError(
                f"the first step has moved {self._name} by {largest:.3g} times the learning rate of Muon instead of "
                "about once: Muon has not taken effect; set optimizer.kind adamw"
            )
