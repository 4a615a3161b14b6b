"""The time of a step: our trainer against a bare DeepSpeed loop, the same model on the same kind of engine.

Both are in the same processes and take turns: some steps of ours, with stream, schedule, flags, reports and all, then
as many of `engine(batch)`, `engine.backward`, `engine.step` on batches in memory. Each stretch of ours is compared with
the mean of the bare ones just before and after it, so that a machine that slows down does so for both.

python benchmarks/step_time.py                          # or under `deepspeed --num_accelerators 2`, torchrun, srun
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch

from nar_scale.config import Config, resolve_deepspeed_config, validate_config
from nar_scale.data import Batch, prepare
from nar_scale.logging_setup import set_up_logging, silence_libraries
from nar_scale.objectives import build_wrapper
from nar_scale.training import World, connect, disconnect, train
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.data.build import open_training_data
from nar_scale.training.engine.build import sharded_initialization
from nar_scale.training.optimizers.build import build_optimizer

SOURCE = Path(__file__).parents[1] / "nar_scale"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences of a rank in a forward pass")
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="steps in a stretch")
    parser.add_argument("--turns", type=int, default=20, help="stretches of each")
    parser.add_argument("--every", type=int, default=10, help="steps between our reports")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_up_logging()
    silence_libraries()
    world = connect()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(world.broadcast(folder))
        if world.is_main:
            sizes = {"seq_len": arguments.seq_len, "samples_per_shard": 1000, "validation": 0.0}
            prepare([SOURCE], directory / "shards", include="*.py", workers=1, progress=False, **sizes)
        world.barrier()
        comparison = Comparison(arguments.steps)
        train(run_config(arguments, directory, world), world, callbacks=[comparison])
        if world.is_main:
            comparison.report(arguments, world)
        world.barrier()
    disconnect()


def run_config(arguments: argparse.Namespace, directory: Path, world: World) -> Config:
    batch = arguments.micro_batch * arguments.accumulation * world.size
    return validate_config(
        {
            "model": {
                "dim": arguments.dim,
                "depth": arguments.depth,
                "heads": arguments.dim // 64,
                "max_seq_len": arguments.seq_len,
            },
            "objective": {"kind": "non_autoregressive"},
            "data": {"directory": str(directory / "shards"), "loader_workers": 0},
            "optimizer": {"learning_rate": 1e-3},
            "training": {
                "steps": arguments.steps * (arguments.turns + 1),
                "global_batch_size": batch,
                "micro_batch_size": arguments.micro_batch,
                "precision": arguments.precision,
                "zero_stage": arguments.zero_stage,
                "run_directory": str(directory / "run"),
            },
            "checkpoint": {"every": 10**9},
            "logging": {"every": arguments.every},
        },
        source="the benchmark",
    )


class Comparison(Callback):
    """Takes bare steps after every so many of ours, and times both."""

    def __init__(self, steps: int):
        self.steps = steps
        self.start = np.zeros(2)
        self.ours: list[np.ndarray] = []
        self.bare: list[np.ndarray] = []

    def on_step_end(self, run: RunView) -> None:
        """End a stretch of ours, and have a bare one."""
        if run.state.step % self.steps:
            return
        now = meet(run.world)
        if run.state.step == self.steps:  # warm by now
            self.engine = bare_engine(run)
            self.batches = load_batches(run, self.steps)
            bare_steps(self.engine, self.batches)
        else:
            self.ours.append((now - self.start) / self.steps)
        before = meet(run.world)
        bare_steps(self.engine, self.batches)
        self.start = meet(run.world)
        self.bare.append((self.start - before) / self.steps)

    def report(self, arguments: argparse.Namespace, world: World) -> None:
        """Print medians."""
        print(json.dumps({**vars(arguments), "ranks": world.size, "device": world.device.type}))
        ours, bare = np.array(self.ours) * 1e3, np.array(self.bare) * 1e3
        neighbours = (bare[:-1] + bare[1:]) / 2
        low, ratio, high = np.quantile(ours / neighbours, (0.25, 0.5, 0.75), axis=0)
        difference = np.median(ours - neighbours, axis=0)
        for number, kind in enumerate(("wall time", "CPU time of rank 0")):
            print(
                f"{kind}: bare {np.median(bare[:, number]):.1f} ms, ours {np.median(ours[:, number]):.1f} ms a step; "
                f"ratio {ratio[number]:.3f} (quartiles {low[number]:.3f} to {high[number]:.3f} of {len(ours)}), "
                f"difference {difference[number]:+.2f} ms",
                flush=True,
            )


def meet(world: World) -> np.ndarray:
    """Wall time and this process's CPU time in seconds, when all ranks are here and their devices idle."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()
    return np.array([time.perf_counter(), time.process_time()])


def bare_engine(run: RunView) -> Any:
    config, world = run.config, run.world
    resolved = resolve_deepspeed_config(config, world.size)
    with sharded_initialization(resolved):
        wrapper = build_wrapper(config, run.state.vocabulary_size)
    wrapper.redirect_forward()
    optimizer = build_optimizer(wrapper.to(world.device), config.optimizer)
    engine, *_ = deepspeed.initialize(model=wrapper, optimizer=optimizer, config=resolved, dist_init_required=False)
    return engine


def load_batches(run: RunView, steps: int) -> list[list[Batch]]:
    """This rank's micro-batches of so many steps, on its device."""
    stream = open_training_data(run.config, run.world).stream(run.config, run.world, 0, 0)
    number = run.engine.accumulation
    return [[next(stream).to(run.world.device) for _ in range(number)] for _ in range(steps)]


def bare_steps(engine: deepspeed.DeepSpeedEngine, batches: list[list[Batch]]) -> None:
    for micro_batches in batches:
        for batch in micro_batches:
            engine.backward(engine(batch).total())
            engine.step()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
