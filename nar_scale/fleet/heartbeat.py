"""The thread that renews a lease while its holder works."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType

from nar_scale.fleet.claims import LOOKS_PER_LEASE, Claim, Units


class Heartbeat:
    """Renews the lease of a claim to the end of a `with` block.

    Args:
        units: of the worker.
        claim: that it holds.

    Attributes:
        lost: whether the unit has been taken over, or finished by another worker.
    """

    def __init__(self, units: Units, claim: Claim) -> None:
        self.lost = False
        self._units, self._claim = units, claim
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self.lost and not self._over.wait(self._units.lease_seconds / LOOKS_PER_LEASE):
            with suppress(OSError):  # the file system may come back
                self.lost = not self._units.beat(self._claim)
