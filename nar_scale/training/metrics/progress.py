"""The progress of a run on the terminal."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from typing import Any

from tqdm import tqdm

from nar_scale.logging_setup import terminal_handler
from nar_scale.progress import width

_logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Step, loss, tokens/s and time left: a bar on a terminal, a line now and then in a log file.

    Args:
        steps: the length of the run.
    """

    def __init__(self, steps: int):
        self._steps = steps
        self._first: tuple[int, float] | None = None  # the first report and when: the steps before it are slow
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._bar: Any = None

    def open(self, step: int) -> None:
        """Show a bar if standard error is a terminal.

        Args:
            step: the step that the run starts or resumes from.
        """
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._steps, initial=step, unit="step", disable=False, **width())
            terminal_handler().beside_bar = tqdm.external_write_mode

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show the state after a step."""
        status = f"loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(status, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._first is None or step < self._first[0]:
            self._first = step, now
        if now - self._last_line < _SECONDS_BETWEEN_LINES and step < self._steps:
            return
        self._last_line = now
        first_step, start = self._first
        steps_taken, left = step - first_step, self._steps - step
        time_left = f", {_minutes((now - start) / steps_taken * left)} left" if steps_taken and left else ""
        _logger.info("step %d/%d, %s%s", step, self._steps, status, time_left)

    def close(self) -> None:
        """Leave the bar, if there is one, as it is, and the terminal to others."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            terminal_handler().beside_bar = nullcontext


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
