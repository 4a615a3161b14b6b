"""Reading and writing the weights and the optimizer state of a DeepSpeed engine, by weight name and position."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nar_scale.checkpoint import EMA, WEIGHT, Partition, PartitionReader
from nar_scale.checkpoint.weights import StartingWeights, check_same_parameters
from nar_scale.model.parameters import full_shape
from nar_scale.training.engine.fragments import (
    Fragment,
    compute_with_masters,
    fragments_of,
    fragments_to_save,
    torch_optimizer,
)

_LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def partitions_of(engine: Any) -> Iterator[Partition]:
    """See `ZeroEngine.partitions`."""
    names = _parameter_names(engine)
    optimizer = torch_optimizer(engine)
    for fragment in fragments_to_save(engine):
        tensors, scalars = {WEIGHT: fragment.of(fragment.master)}, {}
        for kind, value in optimizer.state.get(fragment.master, {}).items():
            if torch.is_tensor(value) and value.ndim:
                tensors[kind] = fragment.of(value)
            else:
                scalars[kind] = float(value)
        parameter = fragment.parameter
        yield Partition(names[id(parameter)], full_shape(parameter), fragment.start, tensors, scalars)


@torch.no_grad()
def restore_partitions(engine: Any, source: PartitionReader | StartingWeights, ignored: Collection[str]) -> None:
    """See `ZeroEngine.restore`."""
    names = _parameter_names(engine)
    shapes = {names[id(parameter)]: full_shape(parameter) for parameter in engine.module.parameters()}
    if isinstance(source, PartitionReader):  # others have been fitted
        check_same_parameters(shapes, source)
    optimizer = torch_optimizer(engine)
    for fragment in fragments_of(engine):
        name, state = names[id(fragment.parameter)], optimizer.state[fragment.master]
        if fragment.elements and WEIGHT in source.kinds[name]:
            stop = fragment.start + fragment.elements
            weight = source.read(WEIGHT, name, fragment.start, stop)
            fragment.of(fragment.master)[: len(weight)].copy_(weight)
        _restore_state(fragment, name, state, source, ignored)
        on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        for kind, number in source.scalars[name].items():
            state[kind] = torch.tensor(number, device=fragment.master.device if on_device else "cpu")
    compute_with_masters(engine)


def _restore_state(
    fragment: Fragment,
    name: str,
    state: dict[str, Any],
    source: PartitionReader | StartingWeights,
    ignored: Collection[str],
) -> None:
    """Give one master tensor the optimizer state of a source, and drop what the source does not have."""
    for kind in set(state) - set(source.kinds[name]) - set(source.scalars[name]):
        del state[kind]
    for kind in sorted(set(source.kinds[name]) - set(ignored) - {WEIGHT}) if fragment.elements else ():
        if kind not in state:
            dtype = torch.float32 if kind == EMA else fragment.master.dtype  # whatever it was saved in
            state[kind] = torch.zeros_like(fragment.master, dtype=dtype)
        values = source.read(kind, name, fragment.start, fragment.start + fragment.elements)
        fragment.of(state[kind]).copy_(values)


def held_tensors(engine: Any) -> Iterator[Tensor]:
    """The weights and the floating-point optimizer state that this rank holds, except what is on NVMe."""
    for parameter in engine.module.parameters():
        yield getattr(parameter, "ds_tensor", parameter.data)
    for state in torch_optimizer(engine).state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point())


def loss_scale_of(engine: Any) -> dict[str, float]:
    """See `ZeroEngine.loss_scale`."""
    scaler = _loss_scaler(engine)
    return {name: getattr(scaler, name) for name in _LOSS_SCALER_FIELDS if hasattr(scaler, name)}


def restore_loss_scale(engine: Any, saved: Mapping[str, float]) -> None:
    """See `ZeroEngine.restore_loss_scale`."""
    scaler = _loss_scaler(engine)
    for name, value in saved.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


def loss_scale_is_exhausted(engine: Any) -> bool:
    """See `ZeroEngine.loss_scale_is_exhausted`."""
    if not engine.fp16_enabled():
        return True
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None:
        return float(scaler.cur_scale) <= float(getattr(scaler, "min_scale", scaler.cur_scale))
    settings = engine.optimizer.loss_scale_config
    return not settings.dynamic_loss_scale or float(settings.cur_scale) <= float(settings.min_loss_scale)


def _loss_scaler(engine: Any) -> Any:
    if not engine.fp16_enabled():
        return None
    return getattr(engine.optimizer, "loss_scaler", None) or engine.optimizer.loss_scale_config


def _parameter_names(engine: Any) -> dict[int, str]:
    return {id(parameter): name for name, parameter in engine.module.named_parameters()}
