"""The names under which a run logs its metrics, with their units.

They stand in `metrics.jsonl` as they are here, and in TensorBoard as `GROUP/NAME`; those of validation data begin with
`validation_`. docs/training.md, "Watching a run", says what each means.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Metric(NamedTuple):
    """What is known of a metric.

    Attributes:
        unit: empty for a pure number.
        group: the group of charts that it stands in; empty for what is in `metrics.jsonl` alone.
    """

    unit: str
    group: str


METRICS = {
    "step": Metric("", ""),
    "time": Metric("s", ""),
    "elapsed_seconds": Metric("s", ""),
    "loss": Metric("nats", "main"),
    "TERM_loss": Metric("nats", "main"),
    "masked_LOW_to_HIGH": Metric("nats per masked token", "loss_by_mask"),
    "gradient_norm": Metric("", "main"),
    "update_ratio": Metric("", "main"),
    "learning_rate": Metric("", "main"),
    "learning_rate_NUMBER": Metric("", "main"),
    "steps_per_second": Metric("1/s", "speed"),
    "samples_per_second": Metric("1/s", "speed"),
    "tokens_per_second": Metric("1/s", "speed"),
    "mfu": Metric("fraction", "speed"),
    "data_wait_fraction": Metric("fraction", "speed"),
    "memory_gib": Metric("GiB", "memory"),
    "memory_now_gib": Metric("GiB", "memory"),
    "host_memory_gib": Metric("GiB", "memory"),
    "host_memory_now_gib": Metric("GiB", "memory"),
    "checkpoint_seconds": Metric("s", "checkpoint"),
    "evaluation_seconds": Metric("s", "speed"),
    "sampling_seconds": Metric("s", "speed"),
    "epoch": Metric("", "data"),
    "samples_of_SOURCE": Metric("", "data"),
    "epochs_of_SOURCE": Metric("", "data"),
    "skipped_samples": Metric("", "data"),
    "skipped_steps": Metric("", "main"),
    "slowest_rank": Metric("", "speed"),
    "slowest_rank_ratio": Metric("", "speed"),
    "validation_nats_per_token": Metric("nats", "main"),
    "validation_standard_error": Metric("nats", "main"),
    "validation_bits_per_byte": Metric("bits", "main"),
    "validation_SOURCE_nats_per_token": Metric("nats", "main"),
    "validation_SOURCE_standard_error": Metric("nats", "main"),
    "validation_SOURCE_bits_per_byte": Metric("bits", "main"),
}
"""Metrics by name; a part in capitals stands for what differs from run to run."""

_PARTS = {"TERM": r"\w+", "LOW": r"0\.\d", "HIGH": r"[01]\.\d", "NUMBER": r"\d+", "SOURCE": r".+"}


def find_metric(name: str) -> Metric | None:
    """The metric that is logged under a name; None if none is."""
    return next((metric for pattern, metric in METRICS.items() if re.fullmatch(_expression(pattern), name)), None)


def tensorboard_tag(name: str) -> str:
    """`GROUP/NAME`, under which a metric stands in TensorBoard."""
    metric = find_metric(name)
    return f"{metric.group if metric is not None and metric.group else 'main'}/{name}"


def _expression(pattern: str) -> str:
    return "_".join(_PARTS.get(part, part) for part in pattern.split("_"))
