"""Left-to-right generation beside x-transformers on a CPU: the same weights, the same run, in turns.

python -m benchmarks.left_to_right_speed [--vocabulary 257 32768] [--threads 2] [--rounds 5] [--compile]

A model of 6 blocks of width 256 with random weights continues 4 prompts of 16 tokens by 200, with keys and values kept
and `top_k` (the most probable tenth of the vocabulary) as its filter, which are the defaults of both. Wall time is what
a user waits; CPU time, of all threads, hardly depends on what else runs on the machine, if there is one thread. Ratios
are medians over the turns. `--compile` measures our compiled steps too, after the turn in which they are compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.speed.peers import Shape, make_twins, random_tokens

BATCH, PROMPT = 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[257, 32_768])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=200, help="tokens that are generated for each prompt")
    parser.add_argument("--compile", action="store_true", help="measure our compiled steps as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {BATCH} x ({PROMPT} + {arguments.new}) tokens")
    for vocabulary in arguments.vocabulary:
        measure(vocabulary, arguments.new, arguments.rounds, arguments.compile)


def measure(vocabulary: int, new: int, rounds: int, compile: bool) -> None:
    """Let both generate in turns, and print times and ratios."""
    shape = Shape(dim=256, depth=6, heads=4, hidden=688, length=PROMPT + new, vocabulary=vocabulary)
    ours, theirs = (twin.eval() for twin in make_twins("AR", shape, torch.device("cpu")))
    prompts = random_tokens(shape, BATCH, PROMPT, torch.device("cpu"))
    contenders: dict[str, Callable[[], object]] = {
        "x-transformers": partial(theirs.generate, prompts, new),
        "nar_scale": partial(ours.generate, prompts, new),
    }
    if compile:
        contenders["nar_scale, compiled"] = partial(ours.generate, prompts, new, compile=True)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, generate in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            generate()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if turn:  # the first warms up
                times[name].append(spent)
    for name, spent_by_turn in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*spent_by_turn))
        ratios = [
            statistics.median(
                reference[what] / own[what] for reference, own in zip(times["x-transformers"], spent_by_turn)
            )
            for what in (0, 1)
        ]
        print(
            f"vocabulary {vocabulary:6} {name:20} {BATCH * new / wall:8.1f} tokens/s, {wall:7.3f} s wall, "
            f"{cpu:7.3f} s CPU; "
            f"x-transformers over it: {ratios[0]:.2f} wall, {ratios[1]:.2f} CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
