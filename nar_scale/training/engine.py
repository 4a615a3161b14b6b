"""The DeepSpeed engine around a wrapper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from nar_scale.config import Config, resolve_deepspeed_config
from nar_scale.errors import ConfigError
from nar_scale.training.distributed import World
from nar_scale.training.optimizer import build_optimizer


def sharded_from_birth(config: Config, world: World) -> AbstractContextManager[None]:
    """A `with` block in which ZeRO 3 shards each layer once it is made, so that no rank ever holds a whole model.

    Other stages build as usual.
    """
    resolved = resolve_deepspeed_config(config, world.size)
    if resolved["zero_optimization"]["stage"] < 3:
        return nullcontext()
    import deepspeed

    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed.zero.Init(config_dict_or_path=resolved, mem_efficient_linear=False)


def build_engine(wrapper: nn.Module, config: Config, world: World) -> Any:
    """A DeepSpeed engine that shards, reduces and steps as `config` says.

    Raises:
        ConfigError: the batch does not divide, or a precision that the device cannot compute in.
    """
    import deepspeed

    if config.training.precision == "fp16" and world.device.type == "cpu":
        raise ConfigError("training.precision fp16 needs a GPU; use bf16 or fp32 on CPUs")
    if config.model.attention_kernel == "flex" and world.device.type == "cpu":
        raise ConfigError("model.attention_kernel flex needs a GPU for training; use sdpa on CPUs")
    # only inference's all-reduce uses this operator; it costs a C++ compilation at the first start
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with _without_compilation():
        import deepspeed.runtime.zero.muon.original_muon
    wrapper.to(world.device)
    optimizer = build_optimizer(wrapper, config.optimizer, config.training.ema_decay)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # until `set_learning_rate`, see below
    resolved = resolve_deepspeed_config(config, world.size)
    engine, *_ = deepspeed.initialize(model=wrapper, optimizer=optimizer, config=resolved, dist_init_required=False)
    if resolved["zero_optimization"]["stage"] == 0:
        # in bf16 and fp16 DeepSpeed has taken a step without gradients, which Adam must not count as its first
        optimizer.state.clear()
    return engine


@contextmanager
def _without_compilation() -> Iterator[None]:
    """Let `torch.compile` do nothing to what is imported meanwhile."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def gathered(wrapper: nn.Module) -> AbstractContextManager[None]:
    """Make a wrapper's own weights whole for use outside of its `forward`.

    Under ZeRO 3 the modules within gather theirs as they run.
    """
    from deepspeed import zero

    return zero.GatheredParameters(list(wrapper.parameters(recurse=False)))


def gradient_norm(engine: Any) -> float | None:
    """Global gradient norm of the last step, before clipping; None where DeepSpeed has not computed it."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Use this rate in the next step, in all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
