"""The metrics of a run as lines of JSON."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nar_scale.files import keep_as_damaged, write_atomically

_logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends lines that are whole, whatever happens: only the last can be cut off, and only by a kill.

    Args:
        path: of the file; what an interrupted attempt has logged after `step` is dropped.
        step: the step that the run starts or resumes from.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, step: int):
        self._path = path
        self._start = time.monotonic() - _drop_later_lines(path, step)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def rewind(self, step: int) -> None:
        """Drop what was logged after a step: the run has gone back to it.

        Raises:
            OSError: the disk refuses.
        """
        self._file.close()
        _drop_later_lines(self._path, step)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append named values of a step, null where they are not finite; when, and after how long, stands beside them.

        Raises:
            OSError: the disk refuses; the file is left as it was.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        now = {"time": round(time.time(), 3), "elapsed_seconds": round(time.monotonic() - self._start, 3)}
        rest = json.dumps({"step": step, **finite, **now}).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(size)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def last_values(path: Path) -> dict[str, float]:
    """The last value of each metric in a file, by name; none of a file that is missing."""
    values: dict[str, float] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        values |= {name: value for name, value in (_parse(line) or {}).items() if value is not None}
    return values


def _drop_later_lines(path: Path, step: int) -> float:
    """Drop what was logged after `step`, or half; returns the seconds that earlier attempts took to get there.

    A file with other damage than a last line that a kill has cut off is kept beside the new one.
    """
    if not path.exists():
        return 0.0
    lines = path.read_bytes().splitlines() if path.is_file() else [b""]
    parsed = [(line, _parse(line)) for line in lines]
    if not path.is_file() or any(values is None for _, values in parsed[:-1]):
        kept = keep_as_damaged(path)
        _logger.warning("%s is damaged; it is kept as %s, and what can be read of it goes on", path, kept.name)
    whole = [(line, values) for line, values in parsed if values is not None and values["step"] <= step]
    write_atomically(path, b"".join(line + b"\n" for line, _ in whole))
    return max((values.get("elapsed_seconds", 0.0) for _, values in whole), default=0.0)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The values of a line; None if it is damaged."""
    try:
        values = json.loads(line)
        step, seconds = values["step"], values.get("elapsed_seconds", 0.0)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return values if isinstance(step, int) and isinstance(seconds, (int, float)) else None
