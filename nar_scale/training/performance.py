"""How fast and how full the hardware is."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from nar_scale.model import TransformerWrapper
from nar_scale.model.layers import Embedding

GIBIBYTE = 2**30
# dense bf16 FLOP/s from the vendors' data sheets, by a part of torch.cuda.get_device_name
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12}


def flops_per_token(net: TransformerWrapper) -> float:
    """FLOPs of a forward and backward pass per token: 6 N + 12 L H Q n (PaLM, arXiv:2204.02311, appendix B).

    N counts the weights of matrix products, so not the embedding tables; L layers of H heads with Q channels, and n
    tokens. The output projection counts for every token, also where a non-autoregressive model predicts only some.
    """
    tables = {id(layer.weight) for layer in net.modules() if isinstance(layer, Embedding)}
    tables -= {id(net.to_logits.weight)}
    weights = sum(full_size(parameter) for parameter in net.parameters() if id(parameter) not in tables)
    layers = net.attn_layers
    return 6.0 * weights + 12.0 * layers.depth * layers.heads * layers.dim_head * net.max_seq_len


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak in FLOP/s, if it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process in GiB, the most so far and now: of its GPU and of the host, or of the host alone."""
    now = psutil.Process().memory_info().rss / GIBIBYTE
    peak = max(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE)
    if device.type != "cuda":
        return {"memory_gib": peak, "memory_now_gib": now}
    return {
        "memory_gib": torch.cuda.max_memory_allocated(device) / GIBIBYTE,
        "memory_now_gib": torch.cuda.memory_allocated(device) / GIBIBYTE,
        "host_memory_gib": peak,
        "host_memory_now_gib": now,
    }


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """A `with` block whose seconds are added to those of a name."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start


class Stopwatch:
    """Time since the last lap, and the part of it spent waiting for something."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waiting = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A `with` block in which nothing is computed."""
        start = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - start

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """A `with` block whose time is left out."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap and the fraction spent waiting; starts the next lap."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        fraction = min(self._waiting / elapsed, 1.0)
        self._start, self._waiting = now, 0.0
        return elapsed, fraction


def full_size(parameter: torch.Tensor) -> int:
    """Elements of a parameter, also when ZeRO 3 has sharded it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
