"""What must be the same on all ranks, compared when they meet: settings, code, versions of libraries, and shards."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nar_scale.config import Config, flat_settings
from nar_scale.errors import DataError, UserError
from nar_scale.text import printable
from nar_scale.training.distributed import World

_LIBRARIES = ("torch", "deepspeed", "numpy", "webdataset", "safetensors", "einops", "einx", "pydantic")
_OF_A_NODE = ("data.cache_directory", "data.index_directory")
_NAMED = 3
_PACKAGE = Path(__file__).parents[1]


def check_ranks_alike(world: World, config: Config) -> None:
    """Check that all ranks have the same settings, and all nodes the same code and libraries; a collective.

    Raises:
        UserError: on every rank, where one differs from rank 0; names its host and the difference.
    """
    settings = {key: value for key, value in flat_settings(config).items() if key not in _OF_A_NODE}
    facts: dict[str, Any] = dict(settings)
    if world.local_rank == 0:
        facts |= _versions() | _code()
    digests = world.gather((_digest(settings), _digest(facts) if world.local_rank == 0 else None))
    expected = digests[0]
    if all(own == expected[0] and of_node in (None, expected[1]) for own, of_node in digests):
        return
    known = world.gather((socket.gethostname(), settings, facts))
    first_host, first_settings, first_facts = known[0]
    for rank, (host, own, found) in enumerate(known):
        of_a_node = len(found) > len(own)
        if differences := _differences(found, first_facts if of_a_node else first_settings):
            raise UserError(
                f"rank {rank} on {host} is not like rank 0 on {first_host}: {differences}; start all ranks with the "
                "same configuration, code and environment"
            )


def check_shards_alike(world: World, shards: Mapping[str, int], what: str) -> None:
    """Check that every node has the shards that rank 0 has found; a collective.

    Args:
        world: this process and its peers.
        shards: the size in bytes of each, by its path; of the main process.
        what: the data set, for the message.

    Raises:
        DataError: on every rank, where one node lacks a shard or has another; names its host and the shard.
    """
    if world.size == world.local_size:
        return
    problem = _shard_problem(shards) if world.local_rank == 0 else None
    for rank, (host, each) in enumerate(world.gather((socket.gethostname(), problem))):
        if each is not None:
            raise DataError(
                f"{host}, where rank {rank} runs, does not have the shards of {what} that rank 0 has: {each}; put the "
                "same data on all nodes, or on a file system that all of them see"
            )


def _shard_problem(shards: Mapping[str, int]) -> str | None:
    with ThreadPoolExecutor(16) as threads:
        sizes = dict(zip(shards, threads.map(_size, shards)))
    if missing := [path for path, size in sizes.items() if size is None]:
        return f"missing: {_names(missing)}"
    if other := [path for path, size in sizes.items() if size != shards[path]]:
        return f"of another size: {_names(other)}"
    return None


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    differing = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    lines = [f"{key} {found.get(key)}, not {expected.get(key)}" for key in differing[:_NAMED]]
    more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    return ", ".join(lines) + more


def _names(paths: Iterable[str]) -> str:
    paths = list(paths)
    more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
    return ", ".join(map(printable, paths[:_NAMED])) + more


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "CUDA of torch": str(torch.version.cuda)}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "missing"
    return found


def _code() -> dict[str, str]:
    """The digest of each module of the package, which may stand in another place on each node."""
    paths = sorted(_PACKAGE.rglob("*.py"))
    return {
        f"the code of {path.relative_to(_PACKAGE.parent)}": blake2b(path.read_bytes(), digest_size=4).hexdigest()
        for path in paths
    }


def _digest(values: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
