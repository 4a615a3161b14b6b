"""Records what a training step on a GPU would make the host wait for, in real runs on the CPU.

python waits.py FILE, a JSON list of [config file, [override, ...]]; prints a JSON list of what each run has waited for,
as [what, where, times]

A CPU is never waited for. So DeepSpeed's accelerator is made to say that it is asynchronous, and to have streams and
events, which does to DeepSpeed what a GPU does; and all calls are recorded that read a tensor's values on the host,
have results of a shape that depends on values, or make a tensor on a device of numbers in pageable memory.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nar_scale.training.callbacks.callback import Callback, RunView

REPOSITORY = Path(__file__).parents[2]
WARM_UP, STEPS = 2, 2  # steps before, and steps that are recorded

_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.equal.default}
_SHAPES = {_aten.nonzero.default, _aten.masked_select.default, _aten._unique2.default, _aten.bincount.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default}
_COPIES = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.cuda, Tensor.new_tensor, torch.tensor, torch.as_tensor}

Found = Counter[tuple[str, str]]


def where() -> str:
    """The innermost function of nar_scale or DeepSpeed that has called: `file: function`, the file from its package."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        for package in ("nar_scale", "deepspeed"):
            if package in path.parts and path != Path(__file__):
                start = len(path.parts) - path.parts[::-1].index(package) - 1
                return f"{'/'.join(path.parts[start:])}: {frame.name}"
    return "elsewhere"


class Operators(TorchDispatchMode):
    """Records operators that would wait."""

    def __init__(self, found: Found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        by_mask = function in _INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        if function in _READS | _SHAPES or by_mask:
            self.found[function.overloadpacket.__name__, where()] += 1
        return function(*arguments, **(options or {}))


class Functions(TorchFunctionMode):
    """Records calls that copy between host and device and wait for it, and that the CPU answers without an operator."""

    def __init__(self, found: Found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        made = function in (torch.tensor, torch.as_tensor)
        if function in _COPIES and (not made or options.get("device") is not None):
            self.found[function.__name__, where()] += 1
        return function(*arguments, **options)


class Asynchronous:
    """Streams and events of a device that works by itself; they do nothing but to record who waits for them."""

    found: ClassVar[Found] = Counter()

    def __init__(self, *_: Any, **__: Any):
        pass

    def synchronize(self, *_: Any) -> None:
        self.found["synchronize", where()] += 1

    def query(self) -> bool:
        return True

    def nothing(self, *_: Any) -> None:
        pass

    wait_stream = wait_event = record = record_event = wait = nothing


def pretend_to_be_asynchronous() -> None:
    """Let DeepSpeed take the branches that it takes on a GPU."""
    from deepspeed.accelerator import get_accelerator

    kind: Any = type(get_accelerator())
    for name in (
        "is_synchronized_device",
        "use_host_timers",
        "resolves_data_dependency",
        "handles_memory_backpressure",
    ):
        setattr(kind, name, lambda self: False)
    stream = Asynchronous()
    kind.Stream = kind.Event = property(lambda self: Asynchronous)
    kind.current_stream = kind.default_stream = lambda self, device=None: stream
    kind.synchronize = lambda self, device=None: stream.synchronize()
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign, assignment]


def use_fused_kernels() -> None:
    """Let AdamW run in one kernel, as on GPUs; otherwise it keeps its counters on the host."""
    initialize = torch.optim.AdamW.__init__

    def fused(self: Any, *arguments: Any, **options: Any) -> None:
        initialize(self, *arguments, **{**options, "fused": True})

    torch.optim.AdamW.__init__ = fused  # type: ignore[method-assign, assignment]


def count_on_the_host() -> None:
    """Let batches say that they have been copied to a device, so that their predicted tokens are counted before."""
    from nar_scale.training.trainer import Trainer

    load = Trainer._load_micro_batches

    def loading(trainer: Trainer) -> Any:
        batches = load(trainer)
        for batch in batches:
            object.__setattr__(batch, "on_host", batch)
        return batches

    Trainer._load_micro_batches = loading  # type: ignore[method-assign]


class Recorder(Callback):
    """A callback that records some steps once the first are taken."""

    def __init__(self) -> None:
        self.found: Found = Counter()
        self.modes = Operators(self.found), Functions(self.found)

    def on_step_end(self, run: RunView) -> None:
        if run.state.step == WARM_UP:
            Asynchronous.found = self.found
            for mode in self.modes:
                mode.__enter__()
        elif run.state.step == WARM_UP + STEPS:
            for mode in reversed(self.modes):
                mode.__exit__(None, None, None)
            Asynchronous.found = Counter()


def main() -> None:
    from nar_scale.config import load_config
    from nar_scale.logging_setup import set_up_logging, silence_libraries
    from nar_scale.training import connect, disconnect, train

    set_up_logging()
    silence_libraries()
    pretend_to_be_asynchronous()
    use_fused_kernels()
    count_on_the_host()
    world = connect()
    results = []
    for config_file, overrides in json.loads(Path(sys.argv[-1]).read_text()):
        recorder = Recorder()
        train(load_config(config_file, overrides), world, callbacks=[recorder])
        results.append(sorted([*what_and_where, times] for what_and_where, times in recorder.found.items()))
    if world.is_main:
        print(json.dumps(results), flush=True)
    disconnect()


if __name__ == "__main__":
    main()
