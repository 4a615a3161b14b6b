"""The progress of long work on the terminal, and what an interruption leaves behind."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# that of tqdm is shared with forked processes: one that is killed while it has it would stop all others
tqdm.set_lock(threading.RLock())


def progress_bar(description: str, total: int | None, unit: str, enabled: bool = True, delay: float = 0.0) -> tqdm[Any]:
    """A bar on standard error with the rate and the time left, which shows nothing unless that is a terminal.

    Args:
        description: of the work, one word.
        total: number of units; None if it is not known, and neither is the time left.
        unit: what is counted, such as "B" or "shard".
        enabled: whether to show it at all.
        delay: seconds until it is shown, for work that mostly takes less.
    """
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        delay=delay,
        **width(),
        disable=not (enabled and sys.stderr.isatty()),
    )


def width() -> dict[str, Any]:
    """The arguments of tqdm for the size of its terminal as it changes, or of 80 columns where it does not say."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal
        columns = 0
    return {"dynamic_ncols": True} if columns else {"ncols": 80, "nrows": 24}


def with_progress(
    items: Iterable[Item], description: str, unit: str, total: int | None = None, enabled: bool = True
) -> Iterator[Item]:
    """The items, with a `progress_bar` that counts them as they are taken.

    Args:
        items: of any kind.
        description: of the work, one word.
        unit: what an item is.
        total: number of the items; that of `items` if not given, where they have a length.
        enabled: whether to show the bar at all.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total, unit, enabled) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def kept_at_interrupt(kept: str) -> Iterator[None]:
    """A `with` block that says, when Ctrl-C ends it, what is kept or given up: `KeyboardInterrupt(kept)`.

    Of blocks within each other the innermost says it. The commands print it in one line, with exit status 130.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            raise
        raise KeyboardInterrupt(kept) from None
