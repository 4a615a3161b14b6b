"""Non-autoregressive generation beside x-transformers, with the same weights, on the CPU.

python -m benchmarks.generation_speed [--rounds N] [--vocabulary N ...] [--threads N] [--steps N] [--compile]

4 sequences of 256 tokens in 18 network calls, width 256, 6 blocks, random weights copied through `nar_scale.interop`.
Both take turns; printed are medians over turns, and the median of their ratios: of the time on the clock, and of the
time on processors, which says more where others use the machine too, with one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.gpu.speed.peers import Shape, difference, make_twins, random_tokens

BATCH, STEPS, LENGTH = 4, 18, 256
CLOCKS: dict[str, Callable[[], float]] = {"clock": time.perf_counter, "processors": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[257, 32_768], help="tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, metavar="N", help="measure ours with N calls of the sampler random too")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for vocabulary in arguments.vocabulary:
        shape = Shape(dim=256, depth=6, heads=8, hidden=680, length=LENGTH, vocabulary=vocabulary)
        twins = make_twins("NAR", shape, torch.device("cpu"), steps=STEPS)
        apart = difference(twins, "NAR", random_tokens(shape, 1, LENGTH, torch.device("cpu")))
        print(f"vocabulary {vocabulary}: logits differ by {apart:.1e} standard deviations", flush=True)
        ours, theirs = (twin.eval() for twin in twins)
        contenders: dict[str, partial[object]] = {
            "theirs": partial(theirs.generate, BATCH),
            "ours": partial(ours.generate, BATCH),
        }
        if arguments.steps is not None:
            few = f"ours, {arguments.steps} calls"
            contenders[few] = partial(ours.generate, BATCH, sampler="random", steps=arguments.steps)
        if arguments.compile:
            contenders |= {
                f"{name}, compiled": partial(each, compile=True)
                for name, each in contenders.items()
                if name != "theirs"
            }
        report(contenders, arguments.rounds)


def report(contenders: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Print the times of contenders that take turns, warmed up, and how many times faster they are than the first."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, generate in contenders.items():
            before = {clock: read() for clock, read in CLOCKS.items()}
            generate()
            if turn:
                times[name].append({clock: read() - before[clock] for clock, read in CLOCKS.items()})
    first = next(iter(times.values()))
    for name, taken in times.items():
        for clock in CLOCKS:
            seconds = statistics.median(each[clock] for each in taken)
            ratio = statistics.median(theirs[clock] / ours[clock] for theirs, ours in zip(first, taken))
            print(f"  {name:16} {clock:12} {seconds:7.2f} s {ratio:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
