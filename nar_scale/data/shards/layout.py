"""Where the shards of a data set lie in its directory."""

from pathlib import Path

from nar_scale.data.shards.dataset_info import DatasetInfo
from nar_scale.data.storage.urls import is_remote

SHARD_NAME = "shard-{:06d}.tar"
SPLITS = ("train", "validation")

FEW_VALIDATION_SAMPLES = 64
"""Fewer of them are worth a remark: the standard error of their likelihood is large, and knows of few documents."""


def named_shards(directory: str, pattern: str, info: DatasetInfo | None) -> str:
    """Return a pattern of shards that can be found in a directory.

    A web server does not list its files, so there `SPLIT/*.tar` becomes the numbered names that `dataset.json` counts.

    Args:
        directory: of the data set, a path or URL.
        pattern: a glob relative to it.
        info: its `dataset.json`, if it has one.
    """
    split = pattern.removesuffix("/*.tar")
    if info is None or split not in info.splits or not directory.startswith(("http://", "https://")):
        return pattern
    last = info.splits[split].shards - 1
    return f"{split}/{SHARD_NAME.format(0)}" if last == 0 else f"{split}/shard-{{000000..{last:06d}}}.tar"


def shard_patterns(directory: str, info: DatasetInfo | None) -> list[str]:
    """Return patterns of the shards of a folder: one for each split, or one of all shards if it has no splits.

    Args:
        directory: the folder, a path or URL.
        info: its `dataset.json`, if it has one; only a remote folder needs it.
    """
    if is_remote(directory):
        return [named_shards(directory, f"{split}/*.tar", info) for split in info.splits] if info else ["**/*.tar"]
    return [f"{split}/*.tar" for split in SPLITS if any((Path(directory) / split).glob("*.tar"))] or ["**/*.tar"]
