"""What a rank is doing, for whoever has to say where it hangs or fails."""

from __future__ import annotations

import time


class Phase:
    """The name of what this process is doing, and since when."""

    def __init__(self) -> None:
        self.enter("starting")

    def enter(self, name: str) -> None:
        """Something else begins, such as `forward pass`."""
        self.name, self.since = name, time.monotonic()
