"""Counting the floating-point operations of a forward pass with DeepSpeed's profiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn


def count_next_forward(engine: Any, path: Path, step: int, on_written: Callable[[], None]) -> None:
    """See `ZeroEngine.count_flops`."""
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    profiler = FlopsProfiler(engine.module, engine)
    profiler.start_profile()

    def finish(module: nn.Module, *_: Any) -> None:
        handle.remove()
        profiler.stop_profile()
        path.parent.mkdir(exist_ok=True)
        profiler.print_model_profile(profile_step=step, output_file=str(path))
        profiler.end_profile()
        on_written()

    handle = engine.module.register_forward_hook(finish)
