"""What happens to a run beside its steps, as lines of JSON: starts, resumes, roll-backs, checkpoints, its end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

EVENTS_FILE = "events.jsonl"
STARTED, RESUMED, CHECKPOINT = "started", "resumed", "checkpoint"
ATTEMPTS = "attempts"
SKIPPED, ROLLED_BACK = "skipped_steps", "rolled_back"
COMPLETE, STOPPED = "complete", "stopped"


class EventLog:
    """Appends events to the file of a run, which keeps them all: also those of steps that were taken back.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path):
        self._path = directory / EVENTS_FILE

    def write(self, step: int, kind: str, text: str) -> None:
        """Append an event, with the time in seconds since 1970; from any thread.

        Args:
            step: steps that the run has taken.
            kind: such as `RESUMED`.
            text: what has happened, in a few words.

        Raises:
            OSError: the disk refuses.
        """
        line = json.dumps({"step": step, "kind": kind, "text": text, "time": round(time.time(), 3)})
        # in one piece, and never behind a line that a kill or a full disk has cut off
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" * cut + line.encode() + b"\n")
        finally:
            os.close(descriptor)
