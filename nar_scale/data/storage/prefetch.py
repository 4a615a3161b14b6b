"""Fetching remote shards before their samples are needed."""

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from nar_scale.errors import UserError


class ShardPrefetcher:
    """Fetches shards one after the other in a thread of its own, which starts with the first and ends with the process.

    Args:
        fetch: fetches shard number i; an error of it is left to those who need the shard.
    """

    def __init__(self, fetch: Callable[[int], None]):
        self._fetch = fetch
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._latest: frozenset[int] = frozenset()
        self._thread: threading.Thread | None = None

    def want(self, shards: Iterable[int]) -> None:
        """Ask for shards; those asked for the last time are not asked for again."""
        wanted = frozenset(shards)
        for shard in sorted(wanted - self._latest):
            self._wanted.put(shard)
        self._latest = wanted
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with suppress(UserError, OSError):
                self._fetch(self._wanted.get())

    def __reduce__(self) -> tuple[type["ShardPrefetcher"], tuple[Callable[[int], None]]]:
        return ShardPrefetcher, (self._fetch,)
