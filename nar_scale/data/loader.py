"""Micro-batches for one rank: the endless training stream, and one pass for evaluation."""

import signal
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from nar_scale.data.batch import Batch
from nar_scale.data.classes import ClassReader
from nar_scale.data.collate import BatchArrays, BatchReader
from nar_scale.data.index import DatasetIndex
from nar_scale.data.order import SampleOrder
from nar_scale.errors import ConfigError, DataError


class TokenStream:
    """The endless, exactly repeatable stream of one rank's micro-batches.

    Global batch b is the positions [b * G, (b + 1) * G) of the sample order. A rank takes its contiguous share of
    them and cuts it into micro-batches, in order. The sequence of global batches depends on the data set, the seed
    and `window_shards` alone: not on the number of ranks, the micro-batch, the workers or where the run was resumed.

    Args:
        index: the data set.
        sequence_length: n; samples are padded to it, a longer one is an error.
        vocabulary_size: every token must be below it.
        seed: of the sample order.
        global_batch_size: G, samples in a global batch over all ranks and accumulation steps.
        micro_batch_size: samples in a `Batch`.
        rank: this process, in [0, world_size).
        world_size: number of processes that share the stream.
        window_shards: shards mixed with each other (see `SampleOrder`).
        workers: processes that read ahead; 0 reads in this one.
        start_sample: samples consumed before, a multiple of G; found at once, nothing is skipped by reading.
        pin_memory: put batches into page-locked memory.
        classes: reads the classes of the samples; batches have none without it.

    Raises:
        ConfigError: G is not a multiple of world_size * micro_batch_size.
        DataError: `start_sample` is not a multiple of G; while iterating, a sample that cannot be used.
    """

    def __init__(
        self,
        index: DatasetIndex,
        *,
        sequence_length: int,
        vocabulary_size: int,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        window_shards: int,
        workers: int = 1,
        start_sample: int = 0,
        pin_memory: bool = False,
        classes: ClassReader | None = None,
    ):
        _check_batch_sizes(global_batch_size, micro_batch_size, world_size)
        if start_sample % global_batch_size or start_sample < 0:
            raise DataError(
                f"the stream cannot start at sample {start_sample}, which is not a multiple of the global batch size "
                f"{global_batch_size}; resume with the global batch size the run was started with"
            )
        self._pin_memory = pin_memory
        order = SampleOrder(index.counts, seed, window_shards)
        self._loader: DataLoader[BatchArrays | DataError] = DataLoader(
            _PositionDataset(BatchReader(index, sequence_length, vocabulary_size, classes), order),
            batch_size=None,
            sampler=_MicroBatchPositions(global_batch_size, micro_batch_size, rank, world_size, start_sample),
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_ignore_stop_signals,
            # DataLoader seeds its workers from the global generator unless it is given one of its own; taking from
            # the global one would make a resumed run differ from an unbroken one.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches for ever, from `start_sample` on.

        Raises:
            DataError: naming shard, key and reason, if a sample cannot be used.
        """
        for arrays in self._loader:
            if isinstance(arrays, DataError):
                raise arrays
            batch = arrays.to_batch()
            yield batch.pin_memory() if self._pin_memory else batch


def sequential_batches(
    index: DatasetIndex,
    *,
    sequence_length: int,
    vocabulary_size: int,
    batch_size: int,
    rank: int,
    world_size: int,
    limit: int | None = None,
    classes: ClassReader | None = None,
) -> Iterator[Batch]:
    """Return one unshuffled pass over the first `limit` samples, each on one rank, for evaluation.

    Ranks take contiguous shares that differ by at most one sample, so some may have a batch less or none at all.

    Args:
        index: the data set.
        sequence_length: n; samples are padded to it, a longer one is an error.
        vocabulary_size: every token must be below it.
        batch_size: samples in a `Batch`; the last of a rank may have fewer.
        rank: this process, in [0, world_size).
        world_size: number of processes that share the pass.
        limit: samples to take over all ranks; all if None.
        classes: reads the classes of the samples; batches have none without it.

    Raises:
        DataError: while iterating, naming shard, key and reason, if a sample cannot be used.
    """
    samples = index.num_samples if limit is None else min(limit, index.num_samples)
    reader = BatchReader(index, sequence_length, vocabulary_size, classes)
    end = samples * (rank + 1) // world_size
    for start in range(samples * rank // world_size, end, batch_size):
        sample_ids = np.arange(start, min(start + batch_size, end), dtype=np.int64)
        yield reader.read(sample_ids, np.zeros_like(sample_ids), sample_ids).to_batch()


class _MicroBatchPositions(Sampler[np.ndarray]):
    def __init__(self, global_batch_size: int, micro_batch_size: int, rank: int, world_size: int, start_sample: int):
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.share = global_batch_size // world_size
        self.first = start_sample + rank * self.share

    def __iter__(self) -> Iterator[np.ndarray]:
        for share_start in count(self.first, self.global_batch_size):
            for start in range(share_start, share_start + self.share, self.micro_batch_size):
                yield np.arange(start, start + self.micro_batch_size, dtype=np.int64)


class _PositionDataset(Dataset[BatchArrays | DataError]):
    def __init__(self, reader: BatchReader, order: SampleOrder):
        self.reader = reader
        self.order = order

    def __getitem__(self, positions: np.ndarray) -> BatchArrays | DataError:
        # Returned, not raised: DataLoader would bury the line in the traceback of its worker.
        try:
            return self.reader.read(positions, *self.order.locate(positions))
        except DataError as error:
            return DataError(*error.args)


def _unchanged(arrays: Any) -> Any:
    return arrays


def _ignore_stop_signals(worker: int) -> None:
    # A batch system signals every process of a job. The trainer decides when to stop, perhaps some steps later, and
    # needs its batches until then; workers notice by themselves when it is gone.
    for stop_signal in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(stop_signal, signal.SIG_IGN)


def _check_batch_sizes(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    step = world_size * micro_batch_size
    if global_batch_size % step == 0 and global_batch_size > 0:
        return
    below = global_batch_size // step * step
    choices = f"{below} or {below + step}" if below > 0 else f"{step}"
    raise ConfigError(
        f"the global batch size {global_batch_size} is not a multiple of world size {world_size} x micro-batch size "
        f"{micro_batch_size} = {step}; set it to {choices}, or change the micro-batch size"
    )
