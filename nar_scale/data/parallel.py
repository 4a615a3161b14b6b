"""Running a function over many items in several processes."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

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
    killed or interrupted.

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
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, initializer=_follow_parent)
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
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # what it has begun may take minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C, which the terminal sends to all processes, to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send_when_parent_ends(signal.SIGKILL)
