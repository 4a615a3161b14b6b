"""All that these tests use of the inside of nar_scale and of libraries, in one module."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nar_scale.config import Config
from nar_scale.data import Batch
from nar_scale.training import World, run, train
from nar_scale.training.callbacks.callback import Callback, RunView
from tests.training import waits


class _AfterEachStep(Callback):
    """Calls a function with the number of each step."""

    def __init__(self, call: Callable[[int], None]):
        self._call = call

    def on_step_end(self, run: RunView) -> None:
        self._call(run.state.step)


def train_watched(
    config: Config, world: World, after_step: Callable[[int], None], init_from: Path | None = None
) -> bool:
    """Train, and call `after_step` with the number of each step that has been taken, after all else."""
    return train(config, world, init_from=init_from, callbacks=[_AfterEachStep(after_step)])


@contextmanager
def watching_batches(see: Callable[[Batch], None]) -> Iterator[None]:
    """A `with` block in which `see` is shown each batch that has been moved to a device."""
    move = Batch.to

    def moving(batch: Batch, *arguments: Any, **options: Any) -> Batch:
        moved = move(batch, *arguments, **options)
        see(moved)
        return moved

    with mock.patch.object(Batch, "to", moving):
        yield


def train_as_on_gpus() -> None:
    """Let runs on CPUs take the ways that they take on GPUs.

    fp16 and FlexAttention train, which are refused on CPUs as slow or not compiled; optimizers are fused, predicted
    tokens counted beforehand, and DeepSpeed finds a device with streams.
    """
    from deepspeed.accelerator import get_accelerator

    waits.pretend_to_be_asynchronous()
    waits.use_fused_kernels()
    waits.count_on_the_host()

    mock.patch.object(run, "check_machine", return_value=None).start()
    mock.patch.object(type(get_accelerator()), "is_fp16_supported", return_value=True).start()
    flex_backward_on_cpus().__enter__()


def flex_backward_on_cpus() -> AbstractContextManager[object]:
    """A `with` block in which torch differentiates FlexAttention on CPUs, which it can where that is not compiled."""
    return mock.patch.object(flex_attention, "_validate_device", return_value=None)


class LiveMemory(TorchDispatchMode):
    """Bytes of all tensors on CPUs, instead of what CUDA's allocator counts.

    Attributes:
        now: bytes at this moment.
        peak: most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        for found in gc.get_objects():
            if isinstance(found, Tensor):
                self._add(found)

    def _add(self, tensor: Tensor) -> None:
        if tensor.device.type != "cpu":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not isinstance(size, int):  # as of the tensors that a compiler imagines
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def forget(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out
