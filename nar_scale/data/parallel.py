"""Running a function over many items in several processes, and saying how far it is."""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from nar_scale.errors import DataError

PR_SET_PDEATHSIG = 1

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores this process may use (a SLURM job may own fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items.

    With one worker everything runs in this process. With more, at most four items per worker are in flight,
    so results do not pile up in memory when the caller is slower than the workers.

    Args:
        function: a picklable function of one item.
        items: picklable items, consumed lazily.
        workers: number of processes.

    Raises:
        DataError: a process was killed.
        Exception: whatever `function` raised; the remaining items are then dropped.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(workers, initializer=_end_with_parent)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps because memory ran out; run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave no workers behind when this process is killed; they would wait for work for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def progress_bar(description: str, total: int, unit: str, enabled: bool) -> "tqdm[Any]":
    """Return a progress bar on stderr, silent unless `enabled` and stderr is a terminal."""
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=True,
        disable=not (enabled and sys.stderr.isatty()),
    )
