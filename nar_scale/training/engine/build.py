"""A `ZeroEngine` around a new wrapper."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from nar_scale.config import Config
from nar_scale.errors import ConfigError
from nar_scale.model.parameters import full_size
from nar_scale.objectives import Objective
from nar_scale.training.distributed import World
from nar_scale.training.engine.fragments import find_misplaced_weight
from nar_scale.training.engine.muon_layout import connect_muon
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.optimizers.build import build_optimizer
from nar_scale.training.optimizers.muon import Muon

_ERRORS_OF_RAW_SETTINGS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError),
)


def initialize_deepspeed() -> None:
    """Connect DeepSpeed to the process group that torch has set up, before anything else of it is used."""
    import deepspeed

    # only inference's all-reduce uses this operator; it costs a C++ compilation at the first start, and the lock that a
    # process leaves behind which is killed meanwhile would hold up all later starts
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


def sharded_initialization(resolved: Mapping[str, Any]) -> AbstractContextManager[None]:
    """A `with` block in which ZeRO 3 shards each layer once it is made, so that no rank ever holds a whole model.

    Under other stages layers are made whole. `initialize_deepspeed` has to be called before.

    Args:
        resolved: the DeepSpeed configuration, from `resolve_deepspeed_config`.
    """
    if resolved["zero_optimization"]["stage"] < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.Init(config_dict_or_path=dict(resolved), mem_efficient_linear=False)


def build_engine(wrapper: Objective, config: Config, resolved: Mapping[str, Any], world: World) -> ZeroEngine:
    """An engine that shards, reduces and steps as `config` says; all ranks take part.

    The learning rates are 0 until `ZeroEngine.set_learning_rates`.

    Args:
        resolved: the DeepSpeed configuration, from `resolve_deepspeed_config`.

    Raises:
        ConfigError: with the raw settings DeepSpeed does not start, or lays weights out in an unknown way.
        UserError: Muon would not step all matrices of the blocks.
    """
    import deepspeed

    with _torch_compile_disabled():
        import deepspeed.runtime.zero.muon.original_muon
    wrapper.to(world.device)
    wrapper.redirect_forward()
    optimizer = build_optimizer(wrapper, config.optimizer, config.training.ema_decay)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with _raw_settings_named(config):
        engine, *_ = deepspeed.initialize(
            model=wrapper, optimizer=optimizer, config=_with_small_buckets(resolved, wrapper), dist_init_required=False
        )
    if engine.zero_optimization_stage() == 0:
        # in bf16 and fp16 DeepSpeed has taken a step without gradients, which Adam must not count as its first
        optimizer.state.clear()
    elif isinstance(optimizer, Muon):
        connect_muon(optimizer, engine, world.device)
    _check_layout(engine, world)
    return ZeroEngine(engine, config.optimizer)


def _with_small_buckets(resolved: Mapping[str, Any], wrapper: Objective) -> dict[str, Any]:
    """The configuration with buckets of no more elements than the model has, as DeepSpeed allocates them whole."""
    zero = resolved["zero_optimization"]
    size = min(zero["reduce_bucket_size"], sum(map(full_size, wrapper.parameters())))
    return {**resolved, "zero_optimization": {**zero, "reduce_bucket_size": size}}


@contextmanager
def _raw_settings_named(config: Config) -> Iterator[None]:
    """Name the raw settings, if there are any, in what DeepSpeed stumbles over: it does not check all as it reads them.

    Raises:
        ConfigError: for an error of DeepSpeed in the block.
    """
    try:
        yield
    except _ERRORS_OF_RAW_SETTINGS as error:
        if not config.deepspeed:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"deepspeed: DeepSpeed cannot start with these settings; change or remove them: {reason}"
        ) from error


def _check_layout(engine: Any, world: World) -> None:
    """Refuse an engine whose checkpoints would hold one weight's numbers as another's."""
    misplaced = next((name for name in world.gather(find_misplaced_weight(engine)) if name is not None), None)
    if misplaced is not None:
        raise ConfigError(
            f"deepspeed.zero_optimization: with these settings DeepSpeed keeps {misplaced!r} at another position than "
            "checkpoints would read; leave out those that order or align weights"
        )


@contextmanager
def _torch_compile_disabled() -> Iterator[None]:
    """Let `torch.compile` do nothing to what is imported in the block."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before
