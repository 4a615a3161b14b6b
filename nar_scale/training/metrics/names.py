"""The names under which a run logs its metrics, with their units.

They stand in `metrics.jsonl` as they are here, and in TensorBoard as `train/NAME`; those of validation data begin
with `validation_`, in TensorBoard with `validation/`. docs/training.md, "Watching a run", says what each means.
"""

from __future__ import annotations

import re

UNITS = {
    "step": "",
    "time": "s",
    "elapsed_seconds": "s",
    "loss": "nats",
    "TERM_loss": "nats",
    "masked_LOW_to_HIGH": "nats per masked token",
    "gradient_norm": "",
    "update_ratio": "",
    "learning_rate": "",
    "learning_rate_NUMBER": "",
    "steps_per_second": "1/s",
    "samples_per_second": "1/s",
    "tokens_per_second": "1/s",
    "mfu": "fraction",
    "data_wait_fraction": "fraction",
    "memory_gib": "GiB",
    "memory_now_gib": "GiB",
    "host_memory_gib": "GiB",
    "host_memory_now_gib": "GiB",
    "checkpoint_seconds": "s",
    "evaluation_seconds": "s",
    "sampling_seconds": "s",
    "epoch": "",
    "samples_of_SOURCE": "",
    "epochs_of_SOURCE": "",
    "skipped_samples": "",
    "skipped_steps": "",
    "slowest_rank": "",
    "slowest_rank_ratio": "",
    "validation_nats_per_token": "nats",
    "validation_standard_error": "nats",
    "validation_bits_per_byte": "bits",
    "validation_SOURCE_nats_per_token": "nats",
    "validation_SOURCE_standard_error": "nats",
    "validation_SOURCE_bits_per_byte": "bits",
}
"""Unit by name; a part in capitals stands for what differs from run to run."""

_PARTS = {"TERM": r"\w+", "LOW": r"0\.\d", "HIGH": r"[01]\.\d", "NUMBER": r"\d+", "SOURCE": r".+"}


def unit_of(name: str) -> str | None:
    """The unit of a metric that was logged under a name; None if no metric has it."""
    return next((unit for pattern, unit in UNITS.items() if re.fullmatch(_expression(pattern), name)), None)


def _expression(pattern: str) -> str:
    return "_".join(_PARTS.get(part, part) for part in pattern.split("_"))
