"""Where a run reports to: the metrics log, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nar_scale.evaluation import encode_png
from nar_scale.files import write_atomically

METRICS_FILE = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 10.0


class Monitor:
    """Writes metrics and samples of one run; only the main process has one.

    Args:
        directory: the run directory.
        step: the step that the run starts or resumes from; what an interrupted attempt reported after it is
            dropped.
        steps: the length of the run.
    """

    def __init__(self, directory: Path, step: int, steps: int):
        from torch.utils.tensorboard import SummaryWriter

        self._log_path = directory / METRICS_FILE
        _drop_later_lines(self._log_path, step)
        self._log = open(self._log_path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
        self._samples = directory / "samples"
        self.progress = Progress(step, steps)

    def scalars(self, step: int, values: dict[str, float], group: str = "train") -> None:
        """Record named values of a step."""
        prefix = "" if group == "train" else f"{group}_"
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, **{f"{prefix}{name}": value for name, value in finite.items()}}
        self._log.write(json.dumps(line) + "\n")
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def texts(self, step: int, texts: list[str]) -> None:
        """Record generated samples of a step, in TensorBoard and as a file."""
        for number, text in enumerate(texts):
            fenced = "\n".join("    " + line for line in text.splitlines())
            self._writer.add_text(f"samples/{number}", fenced, step)
        self._samples.mkdir(exist_ok=True)
        write_atomically(self._samples / f"step-{step:09d}.txt", "\n\n=====\n\n".join(texts).encode())

    def image(self, step: int, image: np.ndarray) -> None:
        """Record a picture of the samples of a step, uint8 [height, width], in TensorBoard and as a file."""
        self._writer.add_image("samples", image, step, dataformats="HW")
        self._samples.mkdir(exist_ok=True)
        write_atomically(self._samples / f"step-{step:09d}.png", encode_png(image))

    def close(self) -> None:
        """Write out everything."""
        self.progress.close()
        self._log.close()
        self._writer.close()


class Progress:
    """Step, loss, tokens/s and time left: a bar on a terminal, a line now and then in a log file."""

    def __init__(self, step: int, steps: int):
        self._first, self._steps = step, steps
        self._start = self._last_line = time.monotonic()
        interactive = sys.stderr.isatty()
        self._bar: Any = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True) if interactive else None

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show where the run is."""
        status = f"loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(status)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and step < self._steps:
            return
        self._last_line = now
        left = (now - self._start) / max(step - self._first, 1) * (self._steps - step)
        self.say(f"step {step}/{self._steps}, {status}, {_minutes(left)} left")

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.close()


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _drop_later_lines(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue  # the line that a kill cut off
    write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
