"""Running a function over many items in several processes, and showing the progress."""

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
from nar_scale.processes import send_when_parent_ends

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use; a SLURM job may own fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items.

    With one worker everything runs in this process. With more, at most four items per worker are in progress, so
    results do not fill the memory when the caller is slower than the workers. The workers end when this process is
    killed.

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
    pool = ProcessPoolExecutor(workers, initializer=send_when_parent_ends, initargs=(signal.SIGKILL,))
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


def progress_bar(description: str, total: int, unit: str, enabled: bool) -> "tqdm[Any]":
    """Return a progress bar on stderr, which shows nothing unless `enabled` and stderr is a terminal.

    Args:
        description: of the work, one word.
        total: number of units.
        unit: what is counted, such as "B" or "shard".
        enabled: whether to show it.
    """
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=True,
        disable=not (enabled and sys.stderr.isatty()),
    )
