"""Errors that many ranks run into at once are reported by the rank that notices first, once."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

from nar_scale.first_rank import wait_for_first_rank

_logger = logging.getLogger(__name__)
_FAILED = "nar_scale/failed"
_STORE_TIMEOUT = timedelta(seconds=10)


def report_error_once(message: str) -> bool:
    """Log an error unless another rank has reported one before; from any thread. Returns whether it was logged."""
    first = first_to_fail()
    if first:
        _logger.error("train: error: %s%s", message, rank_and_host(os.environ))
    return first


def rank_and_host(environment: Mapping[str, str]) -> str:
    """What is added to an error in a job of several nodes: the rank that has it, and its host; else nothing."""
    size, local_size = environment.get("WORLD_SIZE", "1"), environment.get("LOCAL_WORLD_SIZE", "1")
    return f" (rank {environment.get('RANK', '0')} on {socket.gethostname()})" if size != local_size else ""


def first_to_fail() -> bool:
    """Whether no other rank has failed before; a lost connection is only the consequence of another rank's failure.

    Before the ranks are connected this waits until no rank before this one can have told the same error.
    """
    if not dist.is_initialized():
        wait_for_first_rank()
        return True
    try:
        return own_store().add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):
        return False


@cache
def own_store() -> dist.Store:
    """A connection of its own to the key-value store of all ranks, which never waits for one that is in use.

    To be made while all is well: once the main process, which keeps the store, is gone, that takes very long.
    """
    shared: Any = dist.distributed_c10d._get_default_store()
    store: dist.Store = shared.clone()
    store.set_timeout(_STORE_TIMEOUT)
    return store
