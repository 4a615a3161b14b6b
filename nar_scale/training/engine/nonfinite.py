"""Steps without a finite gradient change nothing, at any stage of ZeRO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nar_scale.errors import DivergenceError
from nar_scale.training.distributed import World


def spoil_gradient_of_bad_loss(loss: Tensor) -> Tensor:
    """The loss; if it is not finite, its gradient is not either, whatever it would have been.

    DeepSpeed looks at gradients alone, after they have met, so all ranks notice and skip alike. Nothing waits for the
    device.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, float("nan")).to(loss.dtype)


def skip_steps_without_finite_gradient(engine: Any) -> None:
    """Let every optimizer step whose gradient is not finite leave weights, moments and step counters as they are.

    DeepSpeed does so by itself but at stage 0 in fp32, where the engine steps torch's own optimizer. That one passes
    over parameters that have no gradient. `engine.was_step_applied()` tells at every stage.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.register_step_pre_hook(_drop_bad_gradients)
    scaler = getattr(optimizer, "loss_scaler", None)
    if isinstance(scaler, DynamicLossScaler):
        scaler.raise_error_at_min_scale = False  # `scale_is_exhausted` tells


def _drop_bad_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not parameters:  # also when an optimizer's step calls that of its base
        return
    bad = not all_finite(parameter.grad for parameter in parameters)
    optimizer.overflow = bad  # type: ignore[attr-defined] # where DeepSpeed looks for it
    if bad:
        for parameter in parameters:
            parameter.grad = None


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is infinite or not a number; waits for each device once."""
    checks: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():  # on CPUs the extremes are found 15 times as quickly as each element is looked at
            extremes = torch.stack(torch.aminmax(tensor.detach()))
            checks.setdefault(tensor.device, []).append(extremes.isfinite().all())
    return all(bool(torch.stack(each).all()) for each in checks.values())


def scale_is_exhausted(engine: Any) -> bool:
    """Whether fp16's loss scale cannot fall any further; true in other precisions, which have none."""
    if not engine.fp16_enabled():
        return True
    optimizer = engine.optimizer
    scaler = getattr(optimizer, "loss_scaler", None)
    if scaler is not None:
        return float(scaler.cur_scale) <= float(getattr(scaler, "min_scale", scaler.cur_scale))
    settings = optimizer.loss_scale_config
    return not settings.dynamic_loss_scale or float(settings.cur_scale) <= float(settings.min_loss_scale)


def check_weights(engine: Any, world: World, step: int) -> None:
    """Refuse, on all ranks alike, to go on with weights or optimizer state that are not finite on any of them.

    Raises:
        DivergenceError: they are not.
    """
    bad = torch.tensor([float(not all_finite(_state(engine)))], device=world.device)
    if world.sum(bad).item():
        raise DivergenceError(f"weights or moments are not finite at step {step}, which is not saved")


def _state(engine: Any) -> Iterator[Tensor]:
    """What this rank holds of weights and moments, but for what is on an NVMe disk."""
    for parameter in engine.module.parameters():
        yield getattr(parameter, "ds_tensor", parameter.data)
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point())
