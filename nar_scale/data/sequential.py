"""The inexact stream, for shards that can only be read from start to end: compressed tars and `pipe:` commands.

It is the whole other way to read shards, without index and without order. The exact stream of `loading` reads samples
at random positions, which these shards do not allow. This one works as webdataset's own: shards are drawn with
replacement, samples mixed in a shuffle buffer. Ranks never wait for each other over uneven shards, but samples come
more or less often than once an epoch, in an order that changes with the number of ranks and workers, and after a
restart the stream starts anew.
"""

import random
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from nar_scale.data.formats.tar import SplitSampleError
from nar_scale.data.loading.batch import Batch
from nar_scale.data.loading.collate import BatchArrays, stack
from nar_scale.data.loading.loader import check_batch_sizes, in_workers
from nar_scale.data.loading.tar_stream import READ_ERRORS, read_tar_stream, reason_of
from nar_scale.data.shards.sample_format import Sample, SampleFormat
from nar_scale.data.storage.urls import expand_braces
from nar_scale.errors import DataError
from nar_scale.text import printable

SHUFFLE_BUFFER = 1024
MAX_EMPTY_ROUNDS = 10  # over the shards without finding a sample


class SequentialStream:
    """The endless, inexact stream of one rank's micro-batches.

    Sample ids are the positions in the stream, so a sample gets another mask each time it comes.

    Args:
        urls: files (`.tar`, `.tar.gz`), or commands that write a tar, `pipe:COMMAND`, which a shell runs.
        sample_format: what each sample must look like.
        seed: of the order.
        global_batch_size: samples in a global batch over all ranks and accumulation steps.
        micro_batch_size: samples in a `Batch`.
        rank: of this process, in `[0, world_size)`.
        world_size: number of processes, each with a stream of its own.
        workers: processes that read ahead; 0 reads in this process.
        prefetch: micro-batches that each worker reads ahead.
        start_sample: samples consumed before; the stream then has another order, so that it does not begin with the
            same samples again.
        pin_memory: put batches into page-locked memory.
        skip_faults: return a sample that cannot be used as one of length 0, named in `Batch.faults`.

    Raises:
        ConfigError: the global batch size is not a multiple of world_size * micro_batch_size.
        DataError: while iterating, a shard or sample that cannot be used.
    """

    def __init__(
        self,
        urls: Sequence[str],
        sample_format: SampleFormat,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        workers: int = 1,
        prefetch: int = 2,
        start_sample: int = 0,
        pin_memory: bool = False,
        skip_faults: bool = False,
    ):
        check_batch_sizes(global_batch_size, micro_batch_size, world_size)
        self._rank_batch_size = global_batch_size // world_size
        self._micro_batch_size, self._global_batch_size = micro_batch_size, global_batch_size
        self._first = start_sample + rank * self._rank_batch_size
        self._pin_memory = pin_memory
        dataset = _ShardSamples(urls, sample_format, f"{seed} {rank} {start_sample}", micro_batch_size, skip_faults)
        self._arrays = in_workers(dataset, None, workers, prefetch) if workers else dataset

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches without end.

        Raises:
            DataError: a shard or sample cannot be used; names shard, key and reason.
        """
        steps = self._rank_batch_size // self._micro_batch_size
        for number, arrays in enumerate(self._arrays):
            if isinstance(arrays, DataError):
                raise arrays
            start = self._first + number // steps * self._global_batch_size + number % steps * self._micro_batch_size
            positions = np.arange(start, start + self._micro_batch_size, dtype=np.int64)
            batch = arrays._replace(positions=positions, sample_ids=positions).to_batch()
            yield batch.pin_memory() if self._pin_memory else batch


def find_sequential_shards(directory: str, pattern: str) -> list[str]:
    """Return the shards of a sequential stream.

    Args:
        directory: where the pattern starts.
        pattern: a glob with braces, whose files are returned by their absolute paths, or `pipe:` and a command with
            braces, whose commands are returned.

    Raises:
        DataError: there is none.
    """
    names = expand_braces(pattern)
    if pattern.startswith("pipe:"):
        return names
    # absolute, so that no name of a file is taken for a command
    found = sorted({str(file.absolute()) for name in names for file in Path(directory).glob(name) if file.is_file()})
    if not found:
        raise DataError(f"no shard {pattern} in {directory}; correct the path")
    return found


class _ShardSamples(IterableDataset[BatchArrays | DataError]):
    def __init__(self, urls: Sequence[str], sample_format: SampleFormat, seed: str, batch_size: int, skip_faults: bool):
        self.urls, self.sample_format, self.seed = list(urls), sample_format, seed
        self.batch_size, self.skip_faults = batch_size, skip_faults
        self.last_fault = ""  # the reason of the last shard that could not be read

    def __iter__(self) -> Iterator[BatchArrays | DataError]:
        worker = get_worker_info()
        digest = blake2b(f"{self.seed} {worker.id if worker else 0}".encode(), digest_size=8).digest()
        generator = random.Random(int.from_bytes(digest, "big"))
        zeros = np.zeros(self.batch_size, dtype=np.int64)
        samples: list[Sample | None] = []
        faults: list[str] = []
        for content in self._shuffled(generator):
            if isinstance(content, DataError) and not self.skip_faults:
                yield content
                return
            samples.append(None if isinstance(content, DataError) else content)
            faults.extend([str(content)] if isinstance(content, DataError) else [])
            if len(samples) == self.batch_size:
                yield stack(samples, self.sample_format, zeros, zeros, zeros, tuple(faults))
                samples, faults = [], []
        yield DataError(
            f"the {len(self.urls)} shards of the stream, such as {self.urls[0]}, hold no sample{self.last_fault}"
        )

    def _shuffled(self, generator: random.Random) -> Iterator[Sample | DataError]:
        buffer: list[Sample | DataError] = []
        for sample in self._endless(generator):
            if isinstance(sample, DataError) and not self.skip_faults:
                yield sample
                return
            buffer.append(sample)
            if len(buffer) >= SHUFFLE_BUFFER:
                chosen = generator.randrange(len(buffer))
                buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
                yield buffer.pop()

    def _endless(self, generator: random.Random) -> Iterator[Sample | DataError]:
        """Yield samples and faults, until many shards in a row give no sample at all."""
        shards_without_sample = 0
        while shards_without_sample < MAX_EMPTY_ROUNDS * len(self.urls):
            url = generator.choice(self.urls)
            shards_without_sample += 1
            try:
                for content in read_tar_stream(url):
                    yield self._parse(url, content)
                    shards_without_sample = 0
            except SplitSampleError as error:
                yield DataError(f"shard {url} {error}")
            except READ_ERRORS as error:
                fault = f"shard {url} cannot be read: {reason_of(error)}; copy it again or correct the command"
                self.last_fault = f": {fault}"
                yield DataError(fault)

    def _parse(self, url: str, content: dict[str, Any]) -> Sample | DataError:
        name = f"shard {url}, sample {printable(content['__key__'])}"
        missing = [field for field in self.sample_format.fields if field not in content]
        if missing:
            present = ", ".join(sorted(printable(field) for field in content if not field.startswith("__")))
            return DataError(f"{name}: no field {missing[0]!r}, only {present}; name one of these instead")
        try:
            return self.sample_format.parse(content)
        except ValueError as error:
            return DataError(f"{name}: {error}")
