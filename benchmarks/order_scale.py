"""The order of samples at a size that needs no data: 10^12 samples in 10^6 shards on 16,384 ranks.

python benchmarks/order_scale.py
"""

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np

from nar_scale.data import MixedOrder, SampleOrder, Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10**6)
    parser.add_argument("--samples-per-shard", type=int, default=10**6, help="on average; shards are uneven")
    parser.add_argument("--ranks", type=int, default=16_384)
    parser.add_argument("--share", type=int, default=4, help="samples of a rank in a global batch")
    arguments = parser.parse_args()

    generator = np.random.default_rng(0)
    counts = generator.integers(1, 2 * arguments.samples_per_shard, arguments.shards)
    order = SampleOrder(counts, seed=0)
    total = order.num_samples
    print(f"{total:,} samples in {arguments.shards:,} shards, {arguments.ranks:,} ranks x {arguments.share} samples")

    global_batch = arguments.ranks * arguments.share
    steps = 1024 // arguments.share
    for name, start in {"sample 10": 0, "half an epoch": total // 2, "99 % of the epoch": total // 100 * 99}.items():
        start = start // global_batch * global_batch
        resumed = [timed(partial(resume, counts, start, arguments.share)) for _ in range(5)]
        print(f"resume at {name}: {statistics.median(resumed):.3f} s to the first micro-batch of a rank")

    positions = (np.arange(steps)[:, None] * global_batch + np.arange(arguments.share)).ravel()
    far = total // 2 + positions
    order.locate(far)
    located = statistics.median(timed(lambda: order.locate(far)) for _ in range(51))
    print(f"order: {located / len(far) * 1e6:.2f} us a sample ({len(far):,} at a time, {steps} steps of a rank)")
    mixture = MixedOrder([order, SampleOrder(counts[: len(counts) // 10], 0)], [Stage(0, (0.9, 0.1))], seed=0)
    mixture.locate(far)
    mixed = statistics.median(timed(lambda: mixture.locate(far)) for _ in range(5))
    print(f"mixture of two sources: {mixed / len(far) * 1e6:.2f} us a sample (its blocks hold 65,536 samples)")
    tracemalloc.start()
    order = SampleOrder(counts, seed=0)
    order.locate(np.array([total - 1, total]))  # where two epochs meet, both are held
    held, peak = (size / 2**20 for size in tracemalloc.get_traced_memory())
    print(
        f"memory of a rank: {held:.0f} MiB, and {counts.nbytes / 2**20:.0f} MiB for the counts; at most {peak:.0f} MiB"
    )
    tracemalloc.stop()

    whole = [
        order.locate(np.arange(share, share + arguments.share) + total // 2)[1]
        for share in range(0, global_batch, arguments.share)
    ]
    distinct = len(np.unique(np.concatenate(whole)))
    print(f"a global batch of all {arguments.ranks:,} ranks holds {distinct:,} different samples of {global_batch:,}")


def resume(counts: np.ndarray, start: int, share: int) -> None:
    SampleOrder(counts, seed=0).locate(np.arange(start, start + share))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
