"""Reading shards: plain webdataset against nar_scale's exact stream, on the same files in the same run.

python benchmarks/data_stream.py
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset

from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, TokenStream
from nar_scale.data.shards.shard_scan import content_checksum

VOCABULARY = 50_304
BATCH = 32
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=120_000)
    parser.add_argument("--samples-per-shard", type=int, default=4_000)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024], help="tokens in a sample")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for length in arguments.lengths:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), arguments.samples, arguments.samples_per_shard, length)


def compare(folder: Path, samples: int, samples_per_shard: int, length: int) -> None:
    shards = write_shards(folder, samples, samples_per_shard, length)
    size = sum(Path(shard).stat().st_size for shard in shards)
    print(f"\n{samples:,} samples of {length} tokens (uint16) in {len(shards)} shards, {size / 1e6:.0f} MB")
    seconds = timed(lambda: DatasetIndex.open(folder, "*.tar", progress=False))
    print(f"index, built by all cores: {size / 1e6 / seconds:.0f} MB/s, {samples / seconds:,.0f} samples/s")

    index = DatasetIndex.open(folder, "*.tar", progress=False)
    by_calls = DatasetIndex.open(folder, "*.tar", progress=False, memory_map=False)
    readers: dict[str, Callable[[], Iterable[object]]] = {
        "webdataset, shuffle(1000).decode()": lambda: plain(shards),
        "nar_scale, memory map": lambda: stream(index, length, 0),
        "nar_scale, read calls": lambda: stream(by_calls, length, 0),
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, make in readers.items():
            rates[name].append(rate(make, length, batches=samples // BATCH // 3))
    baseline = statistics.median(rates["webdataset, shuffle(1000).decode()"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name}: {median / 1e6:.2f} M tokens/s in one process, {median / baseline:.1f} x")

    verifying = checksum_seconds(index, min(samples, 4096)) / length
    print(f"verifying checksums: {verifying * statistics.median(rates['nar_scale, memory map']):.2%} of the time")

    places = {"sample 10": 10, "99 % of the epoch": int(samples * 0.99)}
    ours = {name: [timed(partial(first_of_stream, index, length, p)) for _ in range(9)] for name, p in places.items()}
    for name, place in places.items():
        skipping = timed(partial(skip, shards, place))
        print(
            f"resume at {name}: {statistics.median(ours[name]) * 1e3:.1f} ms; webdataset by skipping {skipping:.2f} s"
        )


def write_shards(folder: Path, samples: int, samples_per_shard: int, length: int) -> list[str]:
    generator = np.random.default_rng(0)
    shards = []
    for first_sample in range(0, samples, samples_per_shard):
        shards.append(str(folder / f"shard-{first_sample // samples_per_shard:06d}.tar"))
        with webdataset.TarWriter(shards[-1]) as writer:
            for number in range(first_sample, min(first_sample + samples_per_shard, samples)):
                tokens = generator.integers(0, VOCABULARY, length).astype(np.uint16)
                writer.write({"__key__": f"{number:09d}", "tokens.npy": tokens})
    return shards


def webdataset_samples(shards: list[str]) -> Iterable[object]:
    return webdataset.WebDataset(shards, shardshuffle=100, seed=0).shuffle(1000).decode().to_tuple("tokens.npy")


def plain(shards: list[str]) -> Iterable[object]:
    return webdataset_samples(shards).batched(BATCH)  # type: ignore[attr-defined]


def stream(index: DatasetIndex, length: int, start: int) -> Iterable[object]:
    return TokenStream(
        index,
        SampleOrder(index.counts, seed=0),
        SampleFormat(length, VOCABULARY),
        global_batch_size=BATCH if start % BATCH == 0 else 1,
        micro_batch_size=BATCH if start % BATCH == 0 else 1,
        rank=0,
        world_size=1,
        workers=0,
        start_sample=start,
    )


def rate(make: Callable[[], Iterable[object]], length: int, batches: int) -> float:
    """Tokens a second once the buffers are full."""
    iterator = iter(make())
    for _ in range(1000 // BATCH + 1):
        next(iterator)
    seconds = timed(lambda: list(islice(iterator, batches)) and None)
    return batches * BATCH * length / seconds


def checksum_seconds(index: DatasetIndex, samples: int) -> float:
    """Seconds that it takes to verify the checksum of one sample, which is a part of the time to read it."""
    contents = index.read_many(np.arange(samples))
    expected = [content_checksum(content) for content in contents]

    def verify() -> None:
        assert not any(content_checksum(content) != checksum for content, checksum in zip(contents, expected))

    return min(timed(verify) for _ in range(20)) / samples


def first_of_stream(index: DatasetIndex, length: int, start: int) -> None:
    next(iter(stream(index, length, start)))


def skip(shards: list[str], place: int) -> None:
    next(islice(iter(webdataset_samples(shards)), place, None))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
