"""What a rank is doing, for the messages that say where it hangs or fails."""

from __future__ import annotations

import time

STARTING = "starting"


class Activity:
    """The name of what this process is doing, and since when.

    Attributes:
        name: such as `forward pass`.
        since: when it began, in seconds of the monotonic clock.
        steps: optimizer steps taken by this process.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.enter(STARTING)

    def enter(self, name: str) -> None:
        """Note that something else begins, such as `forward pass`."""
        self.name, self.since = name, time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self.since
