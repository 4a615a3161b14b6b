"""A data set of random tokens, since neither speed nor memory of a step depends on what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nar_scale.data import Sample
from nar_scale.data.preparation.shard_writer import write_shard

SHARDS, SAMPLES_A_SHARD = 8, 64


def write_random_tokens(directory: Path, vocabulary_size: int, length: int) -> None:
    """Write 512 samples of `length` tokens, evenly from `vocabulary_size` ids of at most 16 bits, below `train/`."""
    random = np.random.default_rng(0)
    (directory / "train").mkdir(parents=True)
    for shard in range(SHARDS):
        tokens = random.integers(vocabulary_size, size=(SAMPLES_A_SHARD, length), dtype=np.uint16)
        samples = ((f"{shard:03d}{number:05d}", Sample(row)) for number, row in enumerate(tokens))
        write_shard(directory / "train" / f"shard-{shard:06d}.tar", samples)
