"""Real shards for tests, written by webdataset itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import webdataset

from nar_scale.data import DatasetIndex


def write_samples(shard: Path, samples: Sequence[np.ndarray], field: str = "tokens.npy", first_key: int = 0) -> None:
    """Write arrays as one shard in the way any user of webdataset would."""
    with webdataset.TarWriter(str(shard)) as writer:
        for number, sample in enumerate(samples, start=first_key):
            writer.write({"__key__": f"{number:09d}", field: sample})


def numbered_index(directory: Path, counts: Sequence[int]) -> DatasetIndex:
    """Open shards of the given sizes whose sample i is the two tokens [i, i + 1]."""
    first = 0
    for number, count in enumerate(counts):
        samples = [np.array([i, i + 1], dtype=np.uint16) for i in range(first, first + count)]
        write_samples(directory / f"shard-{number:06d}.tar", samples, first_key=first)
        first += count
    return DatasetIndex.open(directory, "shard-*.tar", progress=False)
