"""Checkpoints: how long ranks stand still for one, and what consolidating it takes, against DeepSpeed's own way.

A model is trained for some steps under ZeRO 2 and saved by both. Consolidating runs in a process of its own each time;
its anonymous memory is sampled, less what importing the libraries takes, and pages of the checkpoint's files that the
kernel may drop at any time do not count.

deepspeed --num_accelerators 2 benchmarks/checkpoints.py [--dim 1024] [--depth 24]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from nar_scale.checkpoint import CheckpointStore, TrainingState
from nar_scale.config import Config, load_config, resolve_deepspeed_config
from nar_scale.data import Batch
from nar_scale.logging_setup import silence_libraries
from nar_scale.objectives import build_wrapper
from nar_scale.training import connect
from nar_scale.training.callbacks.checkpointer import Checkpointer
from nar_scale.training.distributed import World
from nar_scale.training.engine.build import build_engine, initialize_deepspeed
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.metrics.interval_metrics import IntervalMetrics

ROUNDS = 3
VOCABULARY = 32_000
IMPORT_OURS = "from nar_scale.checkpoint import consolidate"
IMPORT_THEIRS = "from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as consolidate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    silence_libraries()
    world = connect()
    directory = Path(world.broadcast(tempfile.mkdtemp() if world.is_main else None))
    engine, config = make_engine(directory, arguments.dim, arguments.depth, world)
    parameters = sum(parameter.numel() for parameter in engine.module.parameters())
    say(world, f"{parameters / 1e6:.0f} M parameters, fp32, AdamW, ZeRO 2 on {world.size} ranks")
    stalls(engine, config, directory, world)
    if world.is_main:
        consolidation(directory)
    world.barrier()


def make_engine(directory: Path, dim: int, depth: int, world: World) -> tuple[ZeroEngine, Path]:
    """An engine that has taken a step."""
    settings = {
        "model": {"dim": dim, "depth": depth, "heads": dim // 64, "max_seq_len": 32},
        "objective": {"kind": "non_autoregressive"},
        "data": {"directory": "unused"},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "steps": 100,
            "global_batch_size": world.size,
            "micro_batch_size": 1,
            "precision": "fp32",
            "run_directory": str(directory),
        },
    }
    path = directory / "config.yaml"
    if world.is_main:
        path.write_text(yaml.safe_dump(settings))
    world.barrier()
    config = load_config(path)
    torch.manual_seed(0)
    initialize_deepspeed()
    resolved = resolve_deepspeed_config(config, world.size)
    engine = build_engine(build_wrapper(config, VOCABULARY), config, resolved, world)
    step(engine, world)
    return engine, path


def step(engine: ZeroEngine, world: World) -> None:
    """Take a training step on random tokens."""
    tokens = torch.randint(VOCABULARY, (1, 32), device=world.device)
    one = torch.zeros(1, dtype=torch.int64, device=world.device)
    engine.backward(engine(Batch(tokens, one + 32, one, one, one)).total(), last=True)
    engine.step()


def stalls(engine: ZeroEngine, path: Path, directory: Path, world: World) -> None:
    """Seconds that training stands still for a checkpoint, three ways in turns; the last ones stay."""
    seconds: dict[str, list[float]] = {"DeepSpeed": [], "nar_scale": [], "nar_scale, asynchronous": []}
    step_seconds = statistics.median(timed(lambda: step(engine, world), world) for _ in range(3))
    store = CheckpointStore(directory / "checkpoints")
    checkpointers = {}
    for name, asynchronous in (("nar_scale", "false"), ("nar_scale, asynchronous", "true")):
        overrides = [f"checkpoint.asynchronous={asynchronous}", "checkpoint.keep_last=1"]
        checkpointers[name] = Checkpointer(store, load_config(path, overrides), world, 0)
        checkpointers[name].start_thread()
    bare = engine._engine  # DeepSpeed's own
    for number in range(ROUNDS):
        seconds["DeepSpeed"].append(timed(lambda: bare.save_checkpoint(str(directory / "deepspeed"), tag="x"), world))
        for turn, (name, checkpointer) in enumerate(checkpointers.items(), 1):
            run = run_at(engine, load_config(path), world, 2 * number + turn)
            seconds[name].append(timed(partial(checkpointer.save, run), world))
            if name != "nar_scale":
                written = timed(checkpointer.finish_writing, world)
                say(world, f"asynchronous: on disk and verified {written:.1f} s later")
    baseline = statistics.median(seconds["DeepSpeed"])
    size = sum(file.stat().st_size for file in (directory / "deepspeed").rglob("*.pt")) / 1e9
    say(world, f"checkpoint of {size:.2f} GB; a training step takes {step_seconds:.1f} s")
    for name, values in seconds.items():
        median = statistics.median(values)
        say(world, f"{name}: training stands still for {median:.2f} s, {median / baseline:.2f} x")


def run_at(engine: ZeroEngine, config: Config, world: World, number: int) -> Any:
    """As much of a run as a checkpointer looks at."""
    state = TrainingState(number, number, "f", 0, world.size, world.size, 2, VOCABULARY, None, None)
    return SimpleNamespace(
        engine=engine,
        config=config,
        world=world,
        state=state,
        metrics=IntervalMetrics(world.device),
        activity=Activity(),
    )


def consolidation(directory: Path) -> None:
    """Seconds and memory to make one file of weights for inference."""
    ours = f"{IMPORT_OURS}; consolidate({str(directory)!r}, {str(directory / 'ours')!r})"
    theirs = (
        f"{IMPORT_THEIRS}; consolidate({str(directory / 'deepspeed')!r}, {str(directory / 'theirs')!r}, "
        "safe_serialization=True, tag='x')"
    )
    results: dict[str, list[tuple[float, float]]] = {"zero_to_fp32": [], "nar_scale": []}
    for _ in range(ROUNDS):
        for name, imports, command in (("zero_to_fp32", IMPORT_THEIRS, theirs), ("nar_scale", IMPORT_OURS, ours)):
            import_seconds, import_bytes = run(imports)
            seconds, memory = run(command)
            results[name].append((seconds - import_seconds, memory - import_bytes))
            subprocess.run(["rm", "-rf", str(directory / "ours"), str(directory / "theirs")], check=True)
    medians = {name: [statistics.median(each) for each in zip(*values)] for name, values in results.items()}
    (their_seconds, their_bytes), (our_seconds, our_bytes) = medians["zero_to_fp32"], medians["nar_scale"]
    print(f"zero_to_fp32: {their_seconds:.1f} s, {their_bytes / 1e6:,.0f} MB of memory")
    print(
        f"nar_scale, with verification of every file and of the logits: {our_seconds:.1f} s "
        f"({our_seconds / their_seconds:.2f} x), {our_bytes / 1e6:,.0f} MB of memory ({our_bytes / their_bytes:.2f} x)"
    )


def run(command: str) -> tuple[float, float]:
    """Seconds and peak anonymous memory in bytes of a Python command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else b""))
    reader.start()
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.005)
    reader.join()
    if process.returncode:
        raise RuntimeError(errors[0].decode())
    return time.perf_counter() - started, peak


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is not backed by a file."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def timed(action: Callable[[], object], world: World) -> float:
    """Seconds until the last rank is done."""
    world.barrier()
    started = time.perf_counter()
    action()
    world.barrier()
    return time.perf_counter() - started


def say(world: World, line: str) -> None:
    if world.is_main:
        print(line, flush=True)


if __name__ == "__main__":
    main()
