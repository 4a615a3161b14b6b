"""Non-autoregressive generation beside x-transformers, with the same weights, on the CPU.

python benchmarks/generation_speed.py [--rounds N] [--vocabulary N ...] [--compile]

4 sequences of 256 tokens in 18 network calls, width 256, 6 blocks, random weights copied through
`nar_scale.interop`, two threads. Both take turns; printed are medians over turns, and the median of their ratios.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch

from benchmarks.gpu.speed.clock import median_ratio, take_turns
from benchmarks.gpu.speed.peers import Shape, difference, make_twins, random_tokens

BATCH, STEPS, LENGTH = 4, 18, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[257, 32_768], help="tokens")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled too")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    device = torch.device("cpu")
    for vocabulary in arguments.vocabulary:
        shape = Shape(dim=256, depth=6, heads=8, hidden=680, length=LENGTH, vocabulary=vocabulary)
        twins = make_twins("NAR", shape, device, steps=STEPS)
        apart = difference(twins, "NAR", random_tokens(shape, 1, LENGTH, device))
        ours, theirs = (twin.eval() for twin in twins)
        contenders = {"ours": partial(ours.generate, BATCH), "theirs": partial(theirs.generate, BATCH)}
        if arguments.compile:
            contenders["ours, compiled"] = partial(ours.generate, BATCH, compile=True)
        for generate in contenders.values():
            generate()
        times = take_turns(contenders, device, rounds=arguments.rounds, calls=1, seconds=3600.0)
        print(f"vocabulary {vocabulary}: logits differ by {apart:.1e} standard deviations")
        for name, seconds in times.items():
            ratio = median_ratio(times["theirs"], seconds)
            print(f"  {name:16} {statistics.median(seconds):7.2f} s {ratio:6.2f}x of x-transformers")


if __name__ == "__main__":
    main()
