"""Fetching remote shards before their samples are needed."""

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from nar_scale.errors import UserError


class ShardPrefetcher:
    """Fetches shards one after the other in a thread, which starts with the first request and ends with the process.

    Args:
        fetch: fetches shard number i. Its errors are ignored here: who reads the shard will meet them.
    """

    def __init__(self, fetch: Callable[[int], None]):
        self._fetch = fetch
        self._requests: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._latest: frozenset[int] = frozenset()
        self._thread: threading.Thread | None = None

    def request(self, shards: Iterable[int]) -> None:
        """Ask for shards by number; those of the latest request are not asked for again."""
        requested = frozenset(shards)
        for shard in sorted(requested - self._latest):
            self._requests.put(shard)
        self._latest = requested
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with suppress(UserError, OSError):
                self._fetch(self._requests.get())

    def __reduce__(self) -> tuple[type["ShardPrefetcher"], tuple[Callable[[int], None]]]:
        return ShardPrefetcher, (self._fetch,)
