"""The DeepSpeed engine around a wrapper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from nar_scale.config import Config, OptimizerConfig, resolve_deepspeed_config
from nar_scale.errors import ConfigError
from nar_scale.training.distributed import World
from nar_scale.training.engine.muon_layout import connect_muon
from nar_scale.training.engine.zero_layout import find_misplaced
from nar_scale.training.optimizers.build import build_optimizer
from nar_scale.training.optimizers.muon import Muon


def sharded_from_birth(config: Config, world: World) -> AbstractContextManager[None]:
    """A `with` block in which ZeRO 3 shards each layer once it is made, so that no rank ever holds a whole model.

    Other stages build as usual.

    Raises:
        ConfigError: the batch does not divide, or this machine cannot do what is asked for.
    """
    _check_machine(config, world)
    resolved = resolve_deepspeed_config(config, world.size)
    if resolved["zero_optimization"]["stage"] < 3:
        return nullcontext()
    import deepspeed

    _join_deepspeed()
    return deepspeed.zero.Init(config_dict_or_path=resolved, mem_efficient_linear=False)


def build_engine(wrapper: nn.Module, config: Config, world: World) -> Any:
    """A DeepSpeed engine that shards, reduces and steps as `config` says.

    Raises:
        ConfigError: with the raw settings it does not start, or lays weights out in a way that is not known here.
    """
    import deepspeed

    _join_deepspeed()
    with _without_compilation():
        import deepspeed.runtime.zero.muon.original_muon
    wrapper.to(world.device)
    optimizer = build_optimizer(wrapper, config.optimizer, config.training.ema_decay)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # until `set_learning_rates`, see below
    resolved = resolve_deepspeed_config(config, world.size)
    with _explained_by_raw_settings(config):
        engine, *_ = deepspeed.initialize(model=wrapper, optimizer=optimizer, config=resolved, dist_init_required=False)
    if resolved["zero_optimization"]["stage"] == 0:
        # in bf16 and fp16 DeepSpeed has taken a step without gradients, which Adam must not count as its first
        optimizer.state.clear()
    elif isinstance(optimizer, Muon):
        connect_muon(optimizer, engine, world.device)
    _check_layout(engine, world)
    return engine


@contextmanager
def _explained_by_raw_settings(config: Config) -> Iterator[None]:
    """Blame what DeepSpeed stumbles over on raw settings, if there are any: it does not check all as it reads them."""
    try:
        yield
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        NotImplementedError,
        TypeError,
        ValueError,
    ) as e:
        if not config.deepspeed:
            raise
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        raise ConfigError(
            f"deepspeed: DeepSpeed cannot start with these settings; change or remove them: {reason}"
        ) from e


def _check_layout(engine: Any, world: World) -> None:
    """Refuse an engine whose checkpoints would hold one weight's numbers as another's."""
    misplaced = next((name for name in world.gather(find_misplaced(engine)) if name is not None), None)
    if misplaced is not None:
        raise ConfigError(
            f"deepspeed.zero_optimization: with these settings DeepSpeed keeps {misplaced!r} in another place than "
            "checkpoints would look for it; leave out those that order or align weights"
        )


def _join_deepspeed() -> None:
    """Let DeepSpeed in on the job that torch is connected to."""
    import deepspeed

    # only inference's all-reduce uses this operator; it costs a C++ compilation at the first start, and the lock that a
    # process leaves behind which is killed meanwhile would hold up all later starts
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


def _check_machine(config: Config, world: World) -> None:
    """Refuse what cannot be computed here."""
    on_cpu = world.device.type == "cpu"
    if config.training.precision == "fp16" and on_cpu:
        raise ConfigError("training.precision fp16 needs a GPU; use bf16 or fp32 on CPUs")
    if config.model.attention_kernel == "flex" and on_cpu:
        raise ConfigError("model.attention_kernel flex needs a GPU for training; use sdpa on CPUs")
    for name in ("quantized_weights", "quantized_gradients"):
        if getattr(config.zero, name) and on_cpu:
            raise ConfigError(f"zero.{name} needs a GPU; leave it out on CPUs")
    if config.zero.offload_directory is not None and not _can_use_disk():
        raise ConfigError(
            "zero.offload_optimizer and offload_parameters nvme need DeepSpeed's async_io, which cannot be built here; "
            "install libaio-dev and a C++ compiler, or use cpu"
        )


def _can_use_disk() -> bool:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False)


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


def set_learning_rates(engine: Any, config: OptimizerConfig, factor: float) -> None:
    """Use this factor of each parameter group's own learning rate in the next step."""
    of_muon = config.muon_learning_rate if config.kind == "muon" else config.learning_rate
    for group in engine.optimizer.param_groups:
        group["lr"] = factor * (of_muon if group.get("use_muon") else config.learning_rate)


def set_accumulation(engine: Any, micro_batches: int) -> None:
    """Take the next step with this many micro-batches a rank."""
    if engine.gradient_accumulation_steps() != micro_batches:
        engine.set_train_batch_size(micro_batches * engine.train_micro_batch_size_per_gpu() * engine.dp_world_size)
        if engine.zero_optimization_stage() > 0:  # whose optimizers have a copy
            engine.optimizer.gradient_accumulation_steps = engine.gradient_accumulation_steps()
