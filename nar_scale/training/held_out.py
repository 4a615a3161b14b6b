"""Held-out data, dealt out to the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nar_scale.data import Batch, ClassReader, DatasetIndex, sequential_batches
from nar_scale.training.distributed import World


@dataclass(frozen=True)
class HeldOut:
    """The first samples of the validation shards.

    Attributes:
        samples: how many of them, at most.
        bytes_per_token: length of the text behind a token, if known.
        classes: reads the classes of the samples, if they have any.
    """

    index: DatasetIndex
    sequence_length: int
    vocabulary_size: int
    batch_size: int
    samples: int
    bytes_per_token: float | None
    world: World
    classes: ClassReader | None = None

    def batches(self) -> Iterator[Batch]:
        """This rank's share, filled up with empty batches so that every rank has as many.

        Under ZeRO 3 a forward pass is a collective; a rank that skipped one would hang the others.
        """
        samples = min(self.samples, self.index.num_samples)
        most = -(-samples // self.world.size)
        given = 0
        for batch in sequential_batches(
            self.index,
            sequence_length=self.sequence_length,
            vocabulary_size=self.vocabulary_size,
            batch_size=self.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            limit=samples,
            classes=self.classes,
        ):
            given += 1
            yield batch
        for _ in range(-(-most // self.batch_size) - given):
            nothing = torch.zeros(1, dtype=torch.int64)
            tokens = torch.zeros(1, self.sequence_length, dtype=torch.int64)
            yield Batch(tokens, nothing, nothing, nothing, nothing, None if self.classes is None else nothing)
