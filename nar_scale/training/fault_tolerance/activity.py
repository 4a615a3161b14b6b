"""What a rank is doing, for whoever has to say where it hangs or fails."""

from __future__ import annotations

import time

STARTING = "starting"


class Phase:
    """The name of what this process is doing, and since when.

    Attributes:
        steps: taken by this process.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.enter(STARTING)

    def enter(self, name: str) -> None:
        """Something else begins, such as `forward pass`."""
        self.name, self.since = name, time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self.since
