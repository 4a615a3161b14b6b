"""A trace of one step of the trainer, with marks that say where its parts begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu.speed.clock import synchronize
from nar_scale.training.engine.zero_engine import ZeroEngine

MARK = "benchmark part: "
DATA, FORWARD, HEAD, BACKWARD, AFTER, OPTIMIZER = "data", "forward", "head", "backward", "after", "optimizer"


class StepTrace:
    """Records what the host and the device do from now on.

    The parts are those of the host's time line, in which a kernel is asked for, however much later it runs: `data`
    (loading, counting, masking), `forward` (embedding and blocks), `head` (with the loss, and both backward),
    `backward` (of blocks and embedding), `after` and `optimizer`.

    Args:
        engine: whose `backward` and `step` are marked.
        wrapper: the wrapper in it.
        device: where it computes, with nothing left to do.
    """

    def __init__(self, engine: ZeroEngine, wrapper: nn.Module, device: torch.device):
        self._device, self._engine = device, engine
        net = wrapper.net
        assert isinstance(net, nn.Module)
        stack = net.attn_layers
        assert isinstance(stack, nn.Module)
        self._handles = [
            net.register_forward_pre_hook(lambda *_: mark(FORWARD)),
            stack.register_forward_hook(self._after_blocks),
        ]
        engine.backward = _between(engine.backward, None, AFTER)  # type: ignore[method-assign]
        engine.step = _between(engine.step, OPTIMIZER, DATA)  # type: ignore[method-assign]
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()
        mark(DATA)

    def finish(self, path: Path) -> None:
        """Wait for the device, and write the trace in the format of chrome://tracing."""
        synchronize(self._device)
        self._profile.stop()
        for handle in self._handles:
            handle.remove()
        del self._engine.backward, self._engine.step
        self._profile.export_chrome_trace(str(path))

    @staticmethod
    def _after_blocks(module: nn.Module, arguments: object, output: tuple[Tensor, Tensor | None]) -> None:
        mark(HEAD)
        if output[0].requires_grad:
            output[0].register_hook(lambda _: mark(BACKWARD))


def mark(part: str) -> None:
    """Let a part of the step begin in the trace."""
    with record_function(MARK + part):
        pass


def _between(call: Callable[..., Any], before: str | None, after: str) -> Callable[..., Any]:
    """A function between two marks."""

    def marked(*arguments: Any, **options: Any) -> Any:
        if before is not None:
            mark(before)
        result = call(*arguments, **options)
        mark(after)
        return result

    return marked
