"""The micro-batches of one rank: the endless training stream, and one pass for evaluation."""

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from ctypes import c_bool
from functools import partial
from multiprocessing import RawValue
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from nar_scale.data.loading.batch import Batch
from nar_scale.data.loading.collate import BatchArrays, BatchReader
from nar_scale.data.loading.mixture import Order
from nar_scale.data.shards.sample_format import SampleFormat, SampleIndex
from nar_scale.errors import ConfigError, DataError

LOCATED_SAMPLES = 1024


class TokenStream:
    """The endless stream of one rank's micro-batches, which can be repeated exactly from any position.

    Global batch b is the positions `[b * G, (b + 1) * G)` of the order. A rank takes a contiguous part of them and cuts
    it into micro-batches. The sequence of global batches depends on the data set and the order alone: not on the
    number of ranks, the micro-batch, the workers or where the run was resumed.

    Args:
        index: the data set.
        order: of its samples.
        sample_format: what each sample must look like.
        global_batch_size: G, samples in a global batch over all ranks and accumulation steps.
        micro_batch_size: samples in a `Batch`.
        rank: of this process, in `[0, world_size)`.
        world_size: number of processes that the stream is divided among.
        workers: processes that read ahead; 0 reads in this process.
        prefetch: micro-batches that each worker reads ahead.
        start_sample: samples consumed before, where the stream begins; none of them is read.
        first_batch: the position at which global batches of this size begin, if those before had another size.
        pin_memory: put batches into page-locked memory.
        skip_faults: return a sample that cannot be used as one of length 0, named in `Batch.faults`.

    Raises:
        ConfigError: G is not a multiple of world_size * micro_batch_size.
        DataError: `start_sample` is not a multiple of G after `first_batch`; while iterating, a sample cannot be used.
    """

    def __init__(
        self,
        index: SampleIndex,
        order: Order,
        sample_format: SampleFormat,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        workers: int = 1,
        prefetch: int = 2,
        start_sample: int = 0,
        first_batch: int = 0,
        pin_memory: bool = False,
        skip_faults: bool = False,
    ):
        check_batch_sizes(global_batch_size, micro_batch_size, world_size)
        if (start_sample - first_batch) % global_batch_size or start_sample < 0:
            raise DataError(
                f"the stream cannot start at sample {start_sample}, which is not a multiple of the global batch size "
                f"{global_batch_size}; resume with the global batch size the run was started with"
            )
        self._pin_memory = pin_memory
        samples = _Samples(BatchReader(index, sample_format, skip_faults))
        micro_batches = _MicroBatches(index, order, global_batch_size, micro_batch_size, rank, world_size, start_sample)
        self._arrays: Callable[[], Iterator[BatchArrays | DataError]] = partial(map, samples.__getitem__, micro_batches)
        if workers:
            self._arrays = partial(iter, in_workers(samples, micro_batches, workers, prefetch))

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches without end, from `start_sample` on.

        Raises:
            DataError: a sample cannot be used; names shard, key and reason.
        """
        for arrays in self._arrays():
            if isinstance(arrays, DataError):
                raise arrays
            batch = arrays.to_batch()
            yield batch.pin_memory() if self._pin_memory else batch


def sequential_batches(
    index: SampleIndex,
    sample_format: SampleFormat,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    limit: int | None = None,
    skip_faults: bool = False,
) -> Iterator[Batch]:
    """Return the micro-batches of one rank in one pass over samples in their order, for evaluation.

    Each sample is on one rank. Ranks take contiguous ranges that differ by at most one sample, so some may have one
    batch less or none at all.

    Args:
        index: the data set.
        sample_format: what each sample must look like.
        batch_size: samples in a `Batch`; the last of a rank may have fewer.
        rank: of this process, in `[0, world_size)`.
        world_size: number of processes that the pass is divided among.
        limit: samples to take over all ranks, spread evenly over the data set; all if None.
        skip_faults: return a sample that cannot be used as one of length 0, named in `Batch.faults`.

    Raises:
        DataError: while iterating, a sample cannot be used; names shard, key and reason.
    """
    samples = index.num_samples if limit is None else min(limit, index.num_samples)
    reader = BatchReader(index, sample_format, skip_faults)
    end = samples * (rank + 1) // world_size
    for start in range(samples * rank // world_size, end, batch_size):
        positions = np.arange(start, min(start + batch_size, end), dtype=np.int64)
        yield reader.read(positions, np.zeros_like(positions), positions * index.num_samples // samples).to_batch()


Located = tuple[np.ndarray, np.ndarray, np.ndarray]  # positions, epochs and sample ids of a micro-batch


class _MicroBatches(Sampler[Located]):
    """The positions of this rank's micro-batches; many are located at a time, which costs hardly more than one."""

    def __init__(
        self,
        index: SampleIndex,
        order: Order,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        start_sample: int,
    ):
        self.index = index
        self.order = order
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank_batch_size = global_batch_size // world_size
        self.first = start_sample + rank * self.rank_batch_size

    def __iter__(self) -> Iterator[Located]:
        first, steps = self.first, 1
        while True:
            starts = first + np.arange(steps, dtype=np.int64) * self.global_batch_size
            positions = (starts[:, None] + np.arange(self.rank_batch_size, dtype=np.int64)).reshape(
                -1, self.micro_batch_size
            )
            epochs, sample_ids = self.order.locate(positions.ravel())
            self.index.prefetch(sample_ids)
            yield from zip(positions, epochs.reshape(positions.shape), sample_ids.reshape(positions.shape))
            first += steps * self.global_batch_size
            # doubling, so that the first batch need not wait for many
            steps = min(2 * steps, -(-LOCATED_SAMPLES // self.rank_batch_size))


class _Samples(Dataset[BatchArrays | DataError]):
    def __init__(self, reader: BatchReader):
        self.reader = reader

    def __getitem__(self, located: Located) -> BatchArrays | DataError:
        # Returned, not raised: DataLoader would bury the line in the traceback of its worker.
        try:
            return self.reader.read(*located)
        except DataError as error:
            return DataError(*error.args)


def in_workers(
    samples: Dataset[BatchArrays | DataError], micro_batches: Sampler[Located] | None, workers: int, prefetch: int
) -> DataLoader[BatchArrays | DataError]:
    """Return a loader that reads micro-batches ahead in other processes.

    Args:
        samples: reads a micro-batch, or the endless stream of them.
        micro_batches: where each lies; None if `samples` is a stream.
        workers: number of processes, at least 1.
        prefetch: micro-batches that each of them reads ahead.
    """
    exiting = RawValue(c_bool, False)
    atexit.register(setattr, exiting, "value", True)  # comes before multiprocessing's own, which terminates workers
    return DataLoader(
        samples,
        batch_size=None,
        sampler=micro_batches,
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_unchanged,
        worker_init_fn=partial(_ignore_stop_signals, exiting),
        # DataLoader seeds its workers from the global generator unless it is given one of its own; taking from
        # the global one would make a resumed run differ from an unbroken one.
        generator=torch.Generator(),
    )


def _unchanged(arrays: Any) -> Any:
    return arrays


def _ignore_stop_signals(exiting: Any, worker: int) -> None:
    # A batch system signals every process of a job. The trainer decides when to stop, perhaps some steps later, and
    # needs its batches until then; workers notice by themselves when it is gone.
    def ignore(number: int, frame: Any) -> None:
        if exiting.value:
            os._exit(0)

    for stop_signal in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(stop_signal, ignore)


def check_batch_sizes(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """Check that a global batch can be divided into the micro-batches of all ranks.

    Args:
        global_batch_size: samples in an optimizer step over all ranks.
        micro_batch_size: samples in a forward pass on one rank.
        world_size: number of ranks.

    Raises:
        ConfigError: the global batch size is not a multiple of world size times micro-batch size.
    """
    step = world_size * micro_batch_size
    if global_batch_size % step == 0 and global_batch_size > 0:
        return
    below = global_batch_size // step * step
    choices = f"{below} or {below + step}" if below > 0 else f"{step}"
    raise ConfigError(
        f"the global batch size {global_batch_size} is not a multiple of world size {world_size} x micro-batch size "
        f"{micro_batch_size} = {step}; set it to {choices}, or change the micro-batch size"
    )
