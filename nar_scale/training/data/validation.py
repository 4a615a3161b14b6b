"""Validation data, divided among the ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from nar_scale.data import Batch, DatasetIndex, SampleFormat, sequential_batches
from nar_scale.data.shards.layout import FEW_VALIDATION_SAMPLES
from nar_scale.training.distributed import World

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationData:
    """Samples of the validation shards, spread evenly over them.

    Attributes:
        samples: how many of them, at most.
        bytes_per_token: length of the text behind a token, if known.
        skip_faults: leave out samples that cannot be used, naming them.
    """

    index: DatasetIndex
    sample_format: SampleFormat
    batch_size: int
    samples: int
    bytes_per_token: float | None
    world: World
    skip_faults: bool = False

    def batches(self) -> Iterator[Batch]:
        """This rank's batches, filled up with empty ones so that every rank has as many.

        Under ZeRO 3 a forward pass is a collective; a rank that skipped one would hang the others.
        """
        samples = min(self.samples, self.index.num_samples)
        most = -(-samples // self.world.size)
        given = 0
        for batch in sequential_batches(
            self.index,
            self.sample_format,
            batch_size=self.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            limit=samples,
            skip_faults=self.skip_faults,
        ):
            given += 1
            for fault in batch.faults:
                _logger.warning("skipped in evaluation: %s", fault)
            yield batch
        for _ in range(-(-most // self.batch_size) - given):
            nothing = torch.zeros(1, dtype=torch.int64)
            tokens = torch.zeros(1, self.sample_format.sequence_length, dtype=torch.int64)
            classes = None if self.sample_format.class_field is None else nothing
            documents = None if self.sample_format.document_field is None else tokens
            yield Batch(tokens, nothing, nothing, nothing, nothing, classes, documents)


def remark_on_few_samples(validation: Mapping[str, ValidationData]) -> str:
    """What the start of a run adds about sources with too few samples for a likelihood; "" if there are none.

    Args:
        validation: by name of the source, "" for a single one.
    """
    counts = {name: data.index.num_samples for name, data in validation.items()}
    few = [f"{count}{name and f' of {name}'}" for name, count in counts.items() if count < FEW_VALIDATION_SAMPLES]
    return f"; for validation only {', '.join(few)}, over which a likelihood says little" if few else ""
