"""Where a run writes its metrics and samples: the metrics log, TensorBoard, and files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nar_scale.config import Config, dump_config, flat_settings
from nar_scale.evaluation import encode_png
from nar_scale.files import write_atomically
from nar_scale.training.metrics.events import EventLog
from nar_scale.training.metrics.jsonl import MetricsLog
from nar_scale.training.metrics.names import tensorboard_tag

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
SAMPLE_SEPARATOR = "\n\n=====\n\n"
"""What stands between the samples in a file of texts."""

_LAYOUT = {
    "main": {
        "loss, training and validation": ["Multiline", ["main/loss$", "main/validation_.*nats_per_token"]],
        "resumes, skips, roll-backs": ["Multiline", ["events/"]],
        "bits per byte": ["Multiline", ["main/validation_.*bits_per_byte"]],
        "learning rates": ["Multiline", ["main/learning_rate"]],
    },
    "loss by masked fraction": {"training": ["Multiline", ["loss_by_mask/"]]},
    "speed": {
        "tokens a second": ["Multiline", ["speed/tokens_per_second"]],
        "of the peak, and waiting for data": ["Multiline", ["speed/mfu", "speed/data_wait_fraction"]],
    },
    "memory": {"GiB of a rank": ["Multiline", ["memory/"]]},
}
"""The charts of TensorBoard's tab of custom scalars: the tags in each, as regular expressions."""

_SWEPT = (
    *("model.dim", "model.depth", "model.max_seq_len"),
    *("objective.kind", "objective.loss", "objective.schedule", "objective.training_schedule"),
    "objective.block_size",
    *("optimizer.kind", "optimizer.learning_rate", "optimizer.muon_learning_rate", "optimizer.weight_decay"),
    *("schedule.kind", "schedule.warmup_steps", "training.steps", "training.global_batch_size", "training.seed"),
)
"""The settings that people compare runs by; the first five, by their names, are the ones that TensorBoard shows."""


class MetricsWriter:
    """Writes metrics and samples of one run; only the main process has one.

    Constructing one opens the files.

    Args:
        directory: the run directory.
        step: the step that the run starts or resumes from; what an interrupted attempt wrote after it is dropped.

    Raises:
        OSError: by each method, where the disk refuses.
    """

    def __init__(self, directory: Path, step: int):
        self._log, self._events = MetricsLog(directory / METRICS_FILE, step), EventLog(directory)
        self._tensorboard, self._samples = directory / "tensorboard", directory / "samples"
        self._step, self._writer = step, self._write_after(step)

    def _write_after(self, step: int) -> SummaryWriter:
        """A writer to TensorBoard, which does not show what was written after the step before."""
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard reads the files by name: the second, then a counter that sorts as text, 10 before 9
        seconds = {int(path.name.split(".")[3]) for path in self._tensorboard.glob("events.out.tfevents.*")}
        while int(time.time()) in seconds:
            time.sleep(0.05)
        return SummaryWriter(str(self._tensorboard), purge_step=step + 1)

    def rewind(self, step: int) -> None:
        """Drop what was written after a step: the run has gone back to it."""
        self._log.rewind(step)
        self._writer.close()
        self._writer = self._write_after(step)

    def settings(self, config: Config, resolved: Mapping[str, Any]) -> None:
        """Record the resolved configuration of a run, as text and as hyperparameters to compare runs by.

        The HParams tab shows the last losses beside them, since it looks for scalars of these names in the same run.
        """
        from torch.utils.tensorboard.summary import hparams

        measured = ["loss"]
        if config.logging.evaluate_every:
            measured += [f"{validation_prefix(source)}nats_per_token" for source in config.data.sources or ("",)]
        events: Any = self._writer.file_writer
        for summary in hparams(_hyperparameters(config), dict.fromkeys(map(tensorboard_tag, measured), 0.0))[:2]:
            events.add_summary(summary)
        # tags are sorted, so that the samples come first
        self._writer.add_text("settings/config", _verbatim(dump_config(config)), self._step)
        self._writer.add_text("settings/deepspeed", _verbatim(json.dumps(resolved, indent=2)), self._step)
        self._writer.add_custom_scalars(_LAYOUT)
        self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step by their names."""
        self._log.write(step, values)
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(tensorboard_tag(name), value, step)
        # after a kill the run goes on from its last checkpoint, and nobody could report these steps again
        self._writer.flush()

    def event(self, step: int, kind: str, text: str) -> None:
        """Record that something has happened at a step, such as a resume: what, and a mark in TensorBoard."""
        self._events.write(step, kind, text)
        self._writer.add_scalar(f"events/{kind}", 1.0, step)
        self._writer.add_text(f"timeline/{kind}", text, step)  # which comes behind the samples
        self._writer.flush()

    def texts(self, step: int, texts: list[str]) -> None:
        """Record generated samples of a step, in TensorBoard and as a file."""
        for number, text in enumerate(texts):
            self._writer.add_text(f"samples/{number}", _verbatim(text), step)
        self._samples.mkdir(exist_ok=True)
        write_atomically(self._samples / f"step-{step:09d}.txt", SAMPLE_SEPARATOR.join(texts).encode())

    def image(self, step: int, image: np.ndarray) -> None:
        """Record an image of the samples of a step, uint8 `[height, width]`, in TensorBoard and as a file."""
        self._writer.add_image("samples", image, step, dataformats="HW")
        self._samples.mkdir(exist_ok=True)
        write_atomically(self._samples / f"step-{step:09d}.png", encode_png(image))

    def close(self) -> None:
        """Write out everything."""
        self._log.close()
        self._writer.close()


def validation_prefix(source: str) -> str:
    """What the names of metrics of a source's validation data begin with; a single source has no name."""
    return f"validation_{source}_" if source else "validation_"


def _verbatim(text: str) -> str:
    """Markdown that shows the text as it is."""
    return "\n".join("    " + line for line in text.splitlines())


def _hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """The settings that people compare runs by, in the types that TensorBoard knows."""
    given = {key: value for key, value in flat_settings(config).items() if key in _SWEPT and value is not None}
    return {k: v if isinstance(v, (bool, int, float, str)) else json.dumps(v) for k, v in given.items()}
