"""One voice for all ranks: whoever notices first what is wrong tells it, the others keep quiet."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

_FAILED = "nar_scale/failed"
_PATIENCE = timedelta(seconds=10)


def tell_first(message: str) -> bool:
    """Print an error unless another rank has done so before; from any thread. Returns whether it was printed."""
    first = first_to_fail()
    if first:
        print(f"train: error: {message}", file=sys.stderr, flush=True)
    return first


def first_to_fail() -> bool:
    """Whether no other rank has failed before; a lost connection is the echo of another rank's failure."""
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"  # before they are connected the ranks of a node fail alike
    try:
        return own_store().add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):
        return False


@cache
def own_store() -> dist.Store:
    """A connection of its own to what all ranks can write to, which never waits for one that is in use.

    To be made while all is well: once the main process, which keeps the store, is gone, that takes very long.
    """
    shared: Any = dist.distributed_c10d._get_default_store()
    store: dist.Store = shared.clone()
    store.set_timeout(_PATIENCE)
    return store
