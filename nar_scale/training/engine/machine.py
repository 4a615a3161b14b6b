"""Whether this machine can compute what a configuration asks for."""

from __future__ import annotations

import torch

from nar_scale.config import Config
from nar_scale.errors import ConfigError


def check_machine(config: Config, device: torch.device) -> None:
    """Refuse settings that need hardware or libraries which are not here.

    Args:
        device: where this process computes.

    Raises:
        ConfigError: names the setting and what it needs.
    """
    on_cpu = device.type == "cpu"
    if config.training.precision == "fp16" and on_cpu:
        raise ConfigError("training.precision fp16 needs a GPU; use bf16 or fp32 on CPUs")
    if config.model.attention_kernel == "flex" and on_cpu:
        raise ConfigError("model.attention_kernel flex needs a GPU for training; use sdpa on CPUs")
    for name in ("quantized_weights", "quantized_gradients"):
        if getattr(config.zero, name) and on_cpu:
            raise ConfigError(f"zero.{name} needs a GPU; leave it out on CPUs")
    if config.zero.offload_directory is not None and not _has_async_io():
        raise ConfigError(
            "zero.offload_optimizer and offload_parameters nvme need DeepSpeed's async_io, which cannot be built here; "
            "install libaio-dev and a C++ compiler, or use cpu"
        )


def _has_async_io() -> bool:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False)
