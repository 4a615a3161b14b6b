"""The tokens of a batch that a loss is computed of, found without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nar_scale.masking import MaskedBatch
from nar_scale.model import WHOLE, SequenceParallelContext
from nar_scale.objectives.terms import require

MASK_FRACTION_BINS = 5

IGNORED = -100
"""The answer to no question: `torch.nn.functional.cross_entropy` gives it a loss and a gradient of 0."""

_TILE = 128  # matrix products are no quicker for fewer rows than this
_SHAPES = 32  # most numbers of slots that occur for batches of one size
_SPARE = 16  # sequences of which a GPU may mask one token more: its cosine is rounded in another way


@dataclass(frozen=True)
class PredictedTokens:
    """Where the predicted tokens stand in the flattened batch `[batch, n]`, in order.

    On a GPU there are more slots than tokens: their number must be known before the device has counted, and only a
    few different numbers occur, so that memory and kernels fit again. Empty slots name the last token of the batch,
    are answered with `IGNORED` and weigh nothing.

    Attributes:
        positions: int64 `[slots]`, positions in the flattened batch.
        local_positions: int64 `[slots]`, positions in this rank's part of the flattened batch, where sequences are
            sharded over ranks.
        filled: bool `[slots]`, false for empty slots, which come last.
        total: batch * n.
    """

    positions: Tensor
    local_positions: Tensor
    filled: Tensor
    total: int

    @classmethod
    def of(
        cls, predicted: Tensor, sequence_parallel: SequenceParallelContext = WHOLE, slots: int | None = None
    ) -> PredictedTokens:
        """Find the tokens.

        Args:
            predicted: bool `[batch, n]`, true for the tokens to predict.
            sequence_parallel: this rank's part of the sequences; only the tokens in it are found.
            slots: how many tokens there are at most, from `slots_for`; if not given, the host waits for the device to
                count them.

        Raises:
            RuntimeError: from the device, if there are more tokens than slots.
        """
        flat = sequence_parallel.shard(predicted).flatten()
        last = max(flat.numel() - 1, 0)
        if slots is None:
            local_positions = flat.nonzero()[:, 0]
            filled = torch.ones_like(local_positions, dtype=torch.bool)
        else:
            require(flat.sum() <= slots, f"more than {slots} tokens are to be predicted")
            local_positions = flat.nonzero_static(size=slots, fill_value=last + 1)[:, 0]
            filled = local_positions <= last
            local_positions = local_positions.clamp(max=last)
        return cls(
            sequence_parallel.global_positions(local_positions, predicted.shape[1]),
            local_positions,
            filled,
            predicted.numel(),
        )

    def select(self, values: Tensor) -> Tensor:
        """Values `[batch, n, ...]` of the tokens, `[slots, ...]`."""
        return values.flatten(0, 1).index_select(0, self.positions)

    def select_local(self, values: Tensor) -> Tensor:
        """Values of this rank's part of the batch, `[batch, n / ranks, ...]`, `[slots, ...]`."""
        return values.flatten(0, 1).index_select(0, self.local_positions)

    def answers(self, tokens: Tensor) -> Tensor:
        """The tokens themselves, int64 `[slots]`; `IGNORED` in empty slots."""
        return self.select(tokens).masked_fill(~self.filled, IGNORED)

    def rows(self, count: int) -> Tensor:
        """Which of `count` equally long rows each token stands in, int64 `[slots]`; the last for empty slots."""
        return self.positions // max(1, self.total // count)

    def spread(self, values: Tensor) -> Tensor:
        """One value of each row, `[rows]`, for each of its tokens, `[slots]`; 0 in empty slots."""
        return values.index_select(0, self.rows(len(values))).masked_fill(~self.filled, 0)

    def replace_in(self, tokens: Tensor, new: Tensor) -> Tensor:
        """A copy of the batch `[batch, n]` with `new`, `[slots]`, in the place of the tokens."""
        padded = torch.cat((tokens.flatten(), tokens.new_zeros(1)))  # empty slots write behind the end
        positions = self.positions.masked_fill(~self.filled, self.total)
        return padded.index_copy_(0, positions, new)[:-1].view_as(tokens)


def slots_for(count: Tensor, total: int) -> int:
    """Slots for `count` of `total` tokens, an int64 scalar on the CPU: a few more, so that few numbers occur."""
    step = max(1, -(-total // (_SHAPES * _TILE))) * _TILE
    return min(total, -(-(int(count) + _SPARE) // step) * step)


@torch.no_grad()
def losses_by_masked_fraction(losses: Tensor, masked: MaskedBatch, predicted: PredictedTokens) -> dict[str, Tensor]:
    """Sums of cross-entropies by the fraction of the sequence that is masked.

    Args:
        losses: cross-entropies in nats, `[slots]`; 0 in empty slots.
        masked: the batch that they belong to.
        predicted: which slot is which token.

    Returns:
        By the name of each range of fractions, such as `masked_0.0_to_0.2`: the sum in nats and the number of tokens,
        `[2]`.
    """
    bins = predicted.spread((masked.counts * MASK_FRACTION_BINS - 1) // masked.lengths.clamp(min=1))
    totals = losses.new_zeros(MASK_FRACTION_BINS, 2)
    totals.index_add_(0, bins, torch.stack((losses, predicted.filled.to(losses.dtype)), dim=1))
    edges = [i / MASK_FRACTION_BINS for i in range(MASK_FRACTION_BINS + 1)]
    return {f"masked_{low:.1f}_to_{high:.1f}": row for low, high, row in zip(edges, edges[1:], totals)}
