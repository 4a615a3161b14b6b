"""What a run shows to whoever started it."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Step, loss, tokens/s and time left: a bar on a terminal, a line now and then in a log file.

    Args:
        step: the step that the run starts or resumes from.
        steps: the length of the run.
    """

    def __init__(self, step: int, steps: int):
        self._steps = steps
        self._first: tuple[int, float] | None = None  # the first report and when: the steps before it are slow
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show where the run is."""
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
        self.say(f"step {step}/{self._steps}, {status}{time_left}")

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
