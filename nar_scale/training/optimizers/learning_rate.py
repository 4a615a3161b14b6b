"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from nar_scale.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor on the learning rate at `step` (from 0) of a run of `steps`.

    Linear warm-up, then `cosine` to `final_factor`, `constant`, `wsd` (warm-up, stable, linear decay over
    the last `decay_fraction` of the run), or `inverse_sqrt` (sqrt(warm-up / step), arXiv:1706.03762, section 5.3).
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "inverse_sqrt":
        return math.sqrt(max(schedule.warmup_steps, 1) / (step + 1))
    if schedule.kind == "cosine":
        progress = (step - schedule.warmup_steps) / max(steps - 1 - schedule.warmup_steps, 1)
        return schedule.final_factor + (1 - schedule.final_factor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    decay_steps = max(round(steps * schedule.decay_fraction), 1)
    progress = (step + 1 - (steps - decay_steps)) / decay_steps
    return 1.0 - (1 - schedule.final_factor) * min(max(progress, 0.0), 1.0)
