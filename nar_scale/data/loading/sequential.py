"""Shards that can only be read from start to end: compressed tars and `pipe:` commands. Inexact.

The exact stream reads samples at random places, which neither allows. This one is webdataset's own: shards drawn with
replacement, samples mixed in a buffer. Nothing hangs on uneven shards, but samples come more or less often than once
an epoch, in an order that changes with the number of ranks and workers, and after a restart the stream starts anew.
"""

import bz2
import gzip
import lzma
import random
import signal
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from nar_scale.data.loading.batch import Batch
from nar_scale.data.loading.collate import BatchArrays, stack
from nar_scale.data.loading.loader import check_batch_sizes, in_workers
from nar_scale.data.shards.sample_format import Sample, SampleFormat
from nar_scale.data.storage.remote import expand_braces
from nar_scale.data.text import printable
from nar_scale.errors import DataError

SHUFFLE_BUFFER = 1024
PATIENCE = 10  # rounds over the shards without finding a sample
BLOCK_BYTES = 1 << 20
CLOSING_SECONDS = 10.0
BROKEN_PIPE = (-signal.SIGPIPE, 128 + signal.SIGPIPE)
READ_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)
DECOMPRESSED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}

MAGIC_BYTES = max(map(len, DECOMPRESSED))


class SequentialStream:
    """One rank's endless, inexact stream of micro-batches.

    Sample ids are the positions in the stream, so masks are drawn anew whenever a sample comes again.

    Args:
        urls: files (`.tar`, `.tar.gz`), or commands that write a tar, `pipe:COMMAND`, which a shell runs.
        sample_format: what each sample must look like.
        seed: of the order.
        global_batch_size: samples in a global batch over all ranks and accumulation steps.
        micro_batch_size: samples in a `Batch`.
        rank: this process, in [0, world_size).
        world_size: number of processes that share the stream.
        workers: processes that read ahead; 0 reads in this one.
        prefetch: micro-batches that each of them reads ahead.
        start_sample: samples consumed before; the stream then takes another order, so that it does not show the same
            samples again.
        pin_memory: put batches into page-locked memory.
        skip_faults: give a sample that cannot be used as one of length 0, named in `Batch.faults`.

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
        self._share = global_batch_size // world_size
        self._micro_batch_size, self._global_batch_size = micro_batch_size, global_batch_size
        self._first = start_sample + rank * self._share
        self._pin_memory = pin_memory
        words = f"{seed} {rank} {start_sample}"
        dataset = _ShardSamples(urls, sample_format, words, micro_batch_size, skip_faults)
        self._arrays = in_workers(dataset, None, workers, prefetch) if workers else dataset

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches for ever.

        Raises:
            DataError: naming shard, key and reason, if one cannot be used.
        """
        steps = self._share // self._micro_batch_size
        for number, arrays in enumerate(self._arrays):
            if isinstance(arrays, DataError):
                raise arrays
            start = self._first + number // steps * self._global_batch_size + number % steps * self._micro_batch_size
            positions = np.arange(start, start + self._micro_batch_size, dtype=np.int64)
            batch = arrays._replace(positions=positions, sample_ids=positions).to_batch()
            yield batch.pin_memory() if self._pin_memory else batch


def find_sequential_shards(directory: str, pattern: str) -> list[str]:
    """Return the files that match a glob below a directory, or the commands of a brace pattern `pipe:...`.

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
    def __init__(
        self, urls: Sequence[str], sample_format: SampleFormat, words: str, batch_size: int, skip_faults: bool
    ):
        self.urls, self.sample_format, self.words = list(urls), sample_format, words
        self.batch_size, self.skip_faults = batch_size, skip_faults
        self.last_fault = ""  # why the last shard that could not be read could not

    def __iter__(self) -> Iterator[BatchArrays | DataError]:
        worker = get_worker_info()
        digest = blake2b(f"{self.words} {worker.id if worker else 0}".encode(), digest_size=8).digest()
        generator = random.Random(int.from_bytes(digest, "big"))
        nothing = np.zeros(self.batch_size, dtype=np.int64)
        samples: list[Sample | None] = []
        faults: list[str] = []
        for content in self._shuffled(generator):
            if isinstance(content, DataError) and not self.skip_faults:
                yield content
                return
            samples.append(None if isinstance(content, DataError) else content)
            faults.extend([str(content)] if isinstance(content, DataError) else [])
            if len(samples) == self.batch_size:
                yield stack(samples, self.sample_format, nothing, nothing, nothing, tuple(faults))
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
                place = generator.randrange(len(buffer))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()

    def _endless(self, generator: random.Random) -> Iterator[Sample | DataError]:
        """Samples and faults, until many shards in a row give no sample at all."""
        barren = 0
        while barren < PATIENCE * len(self.urls):
            url = generator.choice(self.urls)
            barren += 1
            try:
                for content in _read_shard(url):
                    yield self._parse(url, content)
                    barren = 0
            except READ_ERRORS as error:
                fault = f"shard {url} cannot be read: {_reason(error)}; copy it again or correct the command"
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


def _reason(error: Exception) -> str:
    """What went wrong, without the objects that webdataset adds to the arguments of an error."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(next(iter(error.args), error))
    return printable(" ".join(text.partition(" @ <")[0].split()))


def _read_shard(url: str) -> Iterator[dict[str, Any]]:
    from webdataset.gopen import Pipe, gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander

    stream = gopen(url)
    failure: Exception | None = None
    try:
        content = _decompressed(stream.stream if isinstance(stream, Pipe) else stream)
        yield from group_by_keys(tar_file_expander([{"url": url, "stream": content}]))
        while content.read(BLOCK_BYTES):
            pass  # a command should be able to end by itself, and a compressed file ends with its checksum
    except READ_ERRORS as error:
        failure = error
    finally:
        status = _exit_status(stream)
    if status:  # which says more, and of a tar cut between two members it is all there is to notice
        raise OSError(f"its command ended with exit status {status}")
    if failure is not None:
        raise failure


def _decompressed(stream: Any) -> Any:
    """What a buffered stream holds; one cut short is an error, which tarfile's own decompression takes for an end."""
    begun = _Begun(stream, MAGIC_BYTES)
    magic = next((magic for magic in DECOMPRESSED if begun.head.startswith(magic)), None)
    return begun if magic is None else DECOMPRESSED[magic](begun)


class _Begun:
    """A stream whose first bytes have been looked at. A peek would give no more than a command has written by then."""

    def __init__(self, stream: Any, size: int):
        self.head, self._stream = stream.read(size), stream

    def read(self, size: int) -> bytes:
        head, self.head = self.head[:size], self.head[size:]
        return head + self._stream.read(size - len(head))


def _exit_status(stream: Any) -> int:
    """Close what was read, and return the exit status of a command if it has failed."""
    from webdataset.gopen import Pipe

    if not isinstance(stream, Pipe):
        stream.close()
        return 0
    stream.stream.close()
    try:
        status = stream.proc.wait(CLOSING_SECONDS)
    except subprocess.TimeoutExpired:
        stream.proc.kill()
        stream.proc.wait()
        return 0
    return 0 if status in BROKEN_PIPE else status
