"""What ranks hold and send under ZeRO 0 to 3, on 1, 2 and 4 processes of this machine, beside what a plan says.

python -m benchmarks.scaling [--ranks 1 2 4] [--steps 2] [--json FILE]

Bytes are counted, so that they do not depend on the machine: those of tensors in each process, and those that its TCP
connections have sent. Gradients are those between two micro-batches, when ZeRO 2 has freed its buckets. Gloo reduces
and scatters by an all-reduce, which sends twice what NCCL does; the plan's figure is doubled accordingly. `released` is
ZeRO 3 as with a large model, of which weights are gathered for the backward pass again.

Times are medians over all steps but the first, of the slowest rank: `--steps 40`, on a machine that does nothing else.
The plan has no figure for CPUs. Beside the time is its ratio to that of the same case on one process, measured and of
the work alone, which is the number of processes that share a core: each rank computes as much, whatever the number of
ranks. What is above that is the exchange.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from nar_scale.config import Config, resolve_deepspeed_config, validate_config
from nar_scale.data import Batch
from nar_scale.logging_setup import silence_libraries
from nar_scale.objectives import build_wrapper
from nar_scale.planning.cost.communication import collectives_of_step
from nar_scale.planning.cost.partitions import ParameterSizes
from nar_scale.planning.memory_estimate import estimate_memory
from nar_scale.training.distributed import World, connect, disconnect
from nar_scale.training.engine.build import build_engine, initialize_deepspeed, sharded_initialization
from nar_scale.training.engine.fragments import torch_optimizer
from nar_scale.training.engine.zero_engine import ZeroEngine

VOCABULARY, LENGTH, SEQUENCES, MICRO_BATCHES, STEPS = 257, 32, 2, 2, 2
_BYTES_SENT, _BYTES_REPEATED = 200, 208  # where Linux's struct tcp_info has them, from 4.19 on
_WEIGHTS = ("weights", "small weights")  # those that ZeRO 3 has gathered are released after the step


@dataclass(frozen=True)
class Case:
    """A setting to measure."""

    stage: int
    precision: str = "bf16"
    released: bool = False

    @property
    def name(self) -> str:
        """The ZeRO stage and what else is special."""
        return f"ZeRO {self.stage} {self.precision}{', released' if self.released else ''}"

    def config(self, ranks: int) -> Config:
        """A small model, of which ZeRO 3 keeps norms whole and partitions the rest."""
        zero: dict[str, Any] = {"stage3_param_persistence_threshold": 5000}
        if self.released:  # ZeRO 3 gathers weights for the backward pass again, as it does of a large model
            zero |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
        return validate_config(
            {
                "model": {"dim": 64, "depth": 4, "heads": 4, "max_seq_len": LENGTH},
                "objective": {"kind": "autoregressive"},
                "data": {"directory": "none", "vocabulary_size": VOCABULARY},
                "optimizer": {"learning_rate": 1e-3},
                "training": {
                    "steps": STEPS,
                    "global_batch_size": SEQUENCES * MICRO_BATCHES * ranks,
                    "micro_batch_size": SEQUENCES,
                    "precision": self.precision,
                    "zero_stage": self.stage,
                },
                "deepspeed": {"zero_optimization": zero},
            },
            "the benchmark",
        )


@dataclass(frozen=True)
class Measured:
    """Bytes that a rank holds and sends in a step, or is planned to, and its median seconds for a step."""

    weights: float
    masters: float
    moments: float
    gradients: float
    sent: float
    seconds: float = 0.0


CASES = [*(Case(stage) for stage in range(4)), Case(2, "fp32"), Case(3, "fp32"), Case(3, released=True)]


def planned(case: Case, ranks: int) -> Measured:
    """What the planning package says."""
    config = case.config(ranks)
    resolved = resolve_deepspeed_config(config, ranks)
    with torch.device("meta"):
        wrapper = build_wrapper(config, VOCABULARY)
    parts = {part.name: part.size for part in estimate_memory(wrapper, config, resolved, ranks)}
    sizes = ParameterSizes.of(wrapper, config.optimizer)
    collectives = collectives_of_step(sizes, config, resolved, ranks, MICRO_BATCHES)
    return Measured(
        weights=sum(parts.get(name, 0) for name in _WEIGHTS),
        masters=parts.get("master weights", 0),
        moments=parts["moments"],
        gradients=parts["gradients"] + (0 if case.stage == 2 else parts.get("gradient buckets", 0)),
        sent=sum(each.sent(ranks) * (2 if each.kind == "reduce-scatter" else 1) for each in collectives),
    )


def measure(case: Case, world: World, steps: int) -> Measured:
    """Train for some steps on random tokens, count and take the time; all ranks take part."""
    config = case.config(world.size)
    resolved = resolve_deepspeed_config(config, world.size)
    torch.manual_seed(0)
    before = _alive()
    with sharded_initialization(resolved):
        wrapper = build_wrapper(config, VOCABULARY)
    engine = build_engine(wrapper, config, resolved, world)
    gradients = sent = 0.0
    seconds = []
    for step in range(steps):
        engine.set_learning_rates(1.0)
        world.barrier()
        start, sent_before = time.perf_counter(), _bytes_sent()
        for number in range(MICRO_BATCHES):
            _forward_and_backward(engine, last=number == MICRO_BATCHES - 1)
            if step == number == 0:
                held = _by_kind(engine)
                known = {pointer for kind in ("weights", "masters", "moments") for pointer in held[kind]}
                rest = _alive() | _storages(p.grad for p in wrapper.parameters() if p.grad is not None)
                gradients = _total({each: size for each, size in rest.items() if each not in known | before.keys()})
        engine.step()
        seconds.append(time.perf_counter() - start)
        world.barrier()
        sent = _bytes_sent() - sent_before
    held = _by_kind(engine)
    weights, masters, moments = (_total(held[kind]) for kind in ("weights", "masters", "moments"))
    return Measured(weights, masters, moments, gradients, sent, statistics.median(seconds[1:]))


def _forward_and_backward(engine: ZeroEngine, last: bool) -> None:
    ids = torch.arange(SEQUENCES)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH))
    batch = Batch(tokens, torch.full((SEQUENCES,), LENGTH), ids, torch.zeros_like(ids), ids)
    engine.backward(engine(batch).total(), last)


def _by_kind(engine: ZeroEngine) -> dict[str, dict[int, int]]:
    """The storages that a rank holds for good, each counted once."""
    parameters = list(engine.module.parameters())
    partitions = (parameter.ds_tensor for parameter in parameters if hasattr(parameter, "ds_tensor"))
    weights = _storages([*(parameter.data for parameter in parameters), *partitions])
    optimizer = torch_optimizer(engine._engine)
    grouped = [weight for group in optimizer.param_groups for weight in group["params"]]
    masters = _storages([*optimizer.state, *grouped])
    moments = _storages(
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.ndim
    )
    if engine.stage == 3:  # before the first step its optimizer knows none
        masters |= _storages(engine._engine.optimizer.fp32_partitioned_groups_flat)
    return {
        "weights": weights,
        "masters": {each: size for each, size in masters.items() if each not in weights},
        "moments": moments,
    }


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address."""
    found = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    found.pop(0, None)
    return found


def _alive() -> dict[int, int]:
    """All storages that Python knows of."""
    gc.collect()
    return _storages(each for each in gc.get_objects() if type(each) in (Tensor, torch.nn.Parameter))


def _total(storages: dict[int, int]) -> int:
    return sum(storages.values())


def _bytes_sent() -> int:
    """Bytes that this process has sent over all its connections."""
    total = 0
    for connection in psutil.Process().net_connections(kind="tcp"):
        with socket.socket(fileno=os.dup(connection.fd)) as link:
            information = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        sent, repeated = (struct.unpack_from("Q", information, place)[0] for place in (_BYTES_SENT, _BYTES_REPEATED))
        total += sent - repeated
    return total


def _rank(rank: int, ranks: int, port: int, cases: list[Case], steps: int, path: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    silence_libraries()
    world = connect()
    initialize_deepspeed()
    results = [world.gather(measure(case, world, steps)) for case in cases]
    if world.is_main:
        path.write_text(json.dumps([[asdict(each) for each in of_ranks] for of_ranks in results]))
    disconnect()


def run(ranks: int, cases: list[Case], steps: int) -> list[list[Measured]]:
    """What each rank measures, for each case, in one start of so many processes."""
    with tempfile.TemporaryDirectory() as directory, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        path = Path(directory) / "results.json"
        fork = multiprocessing.get_context("fork")  # what is imported is shared
        processes = [fork.Process(target=_rank, args=(rank, ranks, port, cases, steps, path)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(f"a rank of {ranks} failed")
        return [[Measured(**each) for each in of_ranks] for of_ranks in json.loads(path.read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="processes of each start")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="of each case, the first not timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all ranks' measurements there")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, as the first is not timed")
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    kinds = ("weights", "masters", "moments", "gradients", "sent")
    found: dict[str, Any] = {}
    alone: dict[Case, float] = {}
    print("kB of a rank, measured / planned; seconds of a step; ratio to one process, measured / of the work alone")
    print(f"{'':28}" + "".join(f"{kind:>18}" for kind in kinds) + f"{'s a step':>10}{'ratio':>14}")
    for ranks in arguments.ranks:
        for case, of_ranks in zip(CASES, run(ranks, CASES, arguments.steps)):
            plan = planned(case, ranks)
            found[f"{ranks} x {case.name}"] = {
                "planned": asdict(plan),
                "measured": [asdict(each) for each in of_ranks],
            }
            cells = [f"{getattr(of_ranks[0], kind) / 1e3:.1f} / {getattr(plan, kind) / 1e3:.1f}" for kind in kinds]
            seconds = max(each.seconds for each in of_ranks)
            if ranks == 1:
                alone[case] = seconds
            ratio = f"{seconds / alone[case]:.2f} / {max(1.0, ranks / cores):.2f}" if case in alone else "-"
            row = "".join(f"{cell:>18}" for cell in cells)
            print(f"{ranks} x {case.name:<24}{row}{seconds:10.4f}{ratio:>14}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
