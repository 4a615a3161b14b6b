"""Data sets for a few steps of training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from nar_scale.data import DatasetInfo
from nar_scale.data.shards.dataset_info import SplitInfo

VOCABULARY = 257
LENGTH = 64


def write_shard(directory: Path, samples: Iterable[dict[str, Any]], length: int, vocabulary: int) -> Path:
    """A data set of one shard to train on; samples are what each member holds by its field."""
    (directory / "train").mkdir(parents=True)
    samples = list(samples)
    with webdataset.TarWriter(str(directory / "train" / "shard-000000.tar")) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:09d}", **sample})
    tokens = sum(len(sample["tokens.npy"]) for sample in samples)
    size = SplitInfo(documents=len(samples), samples=len(samples), tokens=tokens, bytes=0, shards=1)
    DatasetInfo(None, vocabulary, None, length, "tokens.npy", {"train": size}, {}).save(directory)
    return directory


def random_tokens(count: int, lengths: tuple[int, int], vocabulary: int = VOCABULARY) -> list[np.ndarray]:
    """Sequences of lengths within bounds, both included, some of whose tokens are far more frequent than others."""
    generator = np.random.default_rng(0)
    frequencies = 1.0 / (1 + np.arange(vocabulary))
    frequencies /= frequencies.sum()
    sizes = generator.integers(lengths[0], lengths[1], count, endpoint=True)
    return [generator.choice(vocabulary, size, p=frequencies).astype(np.uint16) for size in sizes]


def write_tokens(directory: Path, count: int, lengths: tuple[int, int], vocabulary: int = VOCABULARY) -> Path:
    """A data set of such sequences."""
    samples = ({"tokens.npy": tokens} for tokens in random_tokens(count, lengths, vocabulary))
    return write_shard(directory, samples, lengths[1], vocabulary)
