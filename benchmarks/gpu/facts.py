"""Stage 1: what the GPU is, and its ceilings: a bf16 matrix product, copies on it, and copies to and from it.

`matrix_product` is also what other stages divide by, on the device and in the minute in which they measure.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.gpu import stage

WARM_UP, REPETITIONS = 3, 10


def seconds_of(call: Callable[[], object], device: torch.device, repetitions: int = REPETITIONS) -> float:
    """The mean time of a call, of `repetitions` that follow each other after three for warming up.

    On a GPU between two events on its stream, so that starting the calls from Python is not counted where the device is
    the slower one.
    """
    for _ in range(WARM_UP):
        call()
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repetitions):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repetitions
    start = time.perf_counter()
    for _ in range(repetitions):
        call()
    return (time.perf_counter() - start) / repetitions


def matrix_product(device: torch.device, size: int = 8192, repetitions: int = REPETITIONS) -> float:
    """TFLOP/s of a bf16 product of two `[size, size]` matrices of normal random numbers, 2 size^3 operations.

    Random data, as products of zeros draw less power and are therefore faster.
    """
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / seconds_of(lambda: torch.mm(a, b, out=out), device, repetitions) / 1e12


def copy(device: torch.device, size: int = 2**32) -> float:
    """TB/s of a copy of `size` bytes on the device, bytes read and written."""
    source = torch.randint(0, 127, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), device) / 1e12


def host_copies(device: torch.device, size: int = 2**30) -> tuple[float, float]:
    """GB/s of a copy of `size` bytes from the host's pinned memory to the device, and back."""
    host = torch.zeros(size, dtype=torch.int8, pin_memory=device.type == "cuda")
    there = torch.empty(size, dtype=torch.int8, device=device)
    to_device = seconds_of(lambda: there.copy_(host, non_blocking=True), device)
    to_host = seconds_of(lambda: host.copy_(there, non_blocking=True), device)
    return size / to_device / 1e9, size / to_host / 1e9


def state_under_load() -> dict[str, str]:
    """What nvidia-smi reads of clocks, power and temperature at this moment; it only reads."""
    keys = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active")
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return dict(zip(keys, done.stdout.strip().split(", "))) if done.returncode == 0 else {}


def describe(record: stage.Record, device: torch.device) -> None:
    if device.type != "cuda":
        record.add("device", "cpu", "", threads=torch.get_num_threads(), headline=True)
        return
    properties = torch.cuda.get_device_properties(device)
    record.add(
        "device",
        properties.name,
        "",
        headline=True,
        memory_gib=round(properties.total_memory / 2**30, 1),
        multiprocessors=properties.multi_processor_count,
        capability=f"{properties.major}.{properties.minor}",
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        nccl=".".join(map(str, torch.cuda.nccl.version())),
    )


def measure_products(record: stage.Record, device: torch.device, size: int, sustained: float) -> None:
    """A few products, as elsewhere published, and for some seconds without a pause, when the power limit counts."""
    short = matrix_product(device, size)
    record.add("bf16 matrix product", round(short, 6), "TFLOP/s", size=size, repetitions=REPETITIONS, headline=True)
    repetitions = max(REPETITIONS, int(sustained * short * 1e12 / (2 * size**3)))
    rates = [matrix_product(device, size, repetitions) for _ in range(2)]
    record.add(
        "bf16 matrix product, sustained",
        round(statistics.mean(rates), 6),
        "TFLOP/s",
        size=size,
        repetitions=2 * repetitions,
        headline=True,
        state=state_under_load() if device.type == "cuda" else {},
    )


def main() -> int:
    arguments = stage.arguments(__doc__)
    record = stage.Record(arguments.output)
    torch.manual_seed(0)
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    describe(record, device)
    size, sustained = (256, 0.1) if arguments.rehearse else (8192, 1.5)
    measure_products(record, device, size, sustained)
    copied = 2**20 if arguments.rehearse else 2**32
    record.add("copy", round(copy(device, copied), 6), "TB/s", bytes=copied, headline=True)
    to_device, to_host = host_copies(device, copied // 4)
    record.add("copy from the host", round(to_device, 3), "GB/s", bytes=copied // 4, memory="pinned")
    record.add("copy to the host", round(to_host, 3), "GB/s", bytes=copied // 4, memory="pinned")
    record.note("A copy on the device counts bytes read and written, one from or to the host the bytes moved.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
