"""Comparing the shards that are there with those that are recorded: in `dataset.json`, or when a run was started."""

import gzip
import json
import zlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import Any

from nar_scale.data.shards.dataset_index import DatasetIndex
from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo, SplitInfo
from nar_scale.data.shards.layout import SHARD_NAME
from nar_scale.data.storage.urls import expand_braces
from nar_scale.errors import DataError
from nar_scale.files import write_atomically
from nar_scale.text import printable

SHARD_LIST = "shards.jsonl.gz"
NAMES_IN_MESSAGES = 3


def check_against_info(index: DatasetIndex, directory: str, pattern: str, info: DatasetInfo | None) -> None:
    """Check that the shards of a prepared data set that match a pattern are those that `dataset.json` counts.

    Args:
        index: the shards that were found.
        directory: of the data set, a path or URL.
        pattern: glob or name by which they were found, with braces; it may name a part of the shards.
        info: the `dataset.json`; None if there is none, and nothing to compare with.

    Raises:
        DataError: shards are missing or do not belong there, which it names, or a split has another number of samples.
    """
    if info is None:
        return
    names = {name.removeprefix("./") for name in expand_braces(pattern)}
    globs = [name for name in names if has_magic(name)]
    counts = {shard.name: shard.samples for shard in index.shards()}
    for split, size in info.splits.items():
        stated = [f"{split}/{SHARD_NAME.format(number)}" for number in range(size.shards)]
        wanted = {name for name in stated if name in names or any(_matches(name, each) for each in globs)}
        if wanted:
            found = {name: samples for name, samples in counts.items() if name.startswith(f"{split}/")}
            _check_split(f"{directory.rstrip('/')}/{INFO_FILE}", split, size, wanted, found, bool(index.damages))


def _check_split(
    path: str, split: str, size: SplitInfo, wanted: set[str], found: dict[str, int], damaged: bool
) -> None:
    says = f"{path} says that {split} has {size.shards:,} shards"
    if missing := sorted(wanted - found.keys()):
        raise DataError(f"{says}; missing: {_names(missing)}; restore them, or prepare the data set again")
    if added := sorted(found.keys() - wanted):
        raise DataError(f"{says}; not one of them: {_names(added)}; move it elsewhere, or prepare the data set again")
    samples = sum(found.values())
    if len(wanted) == size.shards and samples != size.samples and not damaged:
        raise DataError(
            f"{path} says that {split} has {size.samples:,} samples, its shards have {samples:,}; restore the right "
            "shards, or prepare the data set again"
        )


def _matches(name: str, pattern: str) -> bool:
    """Return whether a glob, in which `*` stays within a folder and `**` does not, matches a relative path."""
    if "**" in pattern:
        return fnmatchcase(name, pattern)
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_IN_MESSAGES:,} more" if len(names) > NAMES_IN_MESSAGES else ""
    return ", ".join(map(printable, names[:NAMES_IN_MESSAGES])) + more


def write_shard_list(directory: Path, fingerprint: str, sources: Mapping[str, DatasetIndex]) -> None:
    """Write which shards a run is trained on into its directory, unless that stands there already.

    Args:
        directory: of the run.
        fingerprint: of all shards.
        sources: the shards by name of the source.

    Raises:
        OSError: the directory cannot be written.
    """
    known = _read_shard_list(directory)
    if known is not None and known[0] == fingerprint:
        return
    lines = [[fingerprint], *([source, *shard] for source, index in sources.items() for shard in index.shards())]
    content = "".join(f"{json.dumps(line)}\n" for line in lines)
    write_atomically(directory / SHARD_LIST, gzip.compress(content.encode(), compresslevel=1, mtime=0))


def describe_difference(directory: Path, fingerprint: str, sources: Mapping[str, DatasetIndex]) -> str | None:
    """Return which shard is not what it was when a run was started; None if that is not known.

    Args:
        directory: of the run.
        fingerprint: of the shards with which it was started.
        sources: the shards that are there now, by name of the source.
    """
    known = _read_shard_list(directory)
    if known is None or known[0] != fingerprint:
        return None
    before, now = (
        known[1],
        {(source, shard.name): shard for source, index in sources.items() for shard in index.shards()},
    )
    for key in sorted(before.keys() | now.keys()):
        name = f"shard {printable(key[1])}" + (f" of source {printable(key[0])}" if key[0] else "")
        if key not in now:
            return f"{name} is missing"
        if key not in before:
            return f"{name} was not there"
        if before[key] != list(now[key]):
            size, samples = before[key][1], before[key][3]
            return f"{name} had {size:,} bytes and {samples:,} samples, now {now[key].size:,} and {now[key].samples:,}"
    return None


_ShardList = tuple[str, dict[tuple[str, str], list[Any]]]  # the fingerprint, and each shard by source and name


def _read_shard_list(directory: Path) -> _ShardList | None:
    """Return what `write_shard_list` wrote; None if there is no such file, or not a whole one."""
    try:
        with gzip.open(directory / SHARD_LIST, "rt", encoding="utf-8") as file:
            ((fingerprint,), *lines) = (json.loads(line) for line in file)
        return fingerprint, {(line[0], line[1]): line[1:] for line in lines}
    except (OSError, EOFError, ValueError, IndexError, TypeError, zlib.error):
        return None
