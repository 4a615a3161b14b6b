"""Throughput of prompts of all different lengths, over that of as many prompts of their mean length.

As a worker does it: in parts of 64 requests, 16 sequences in a forward pass. Autoregressive: prompts of 1 to 200 tokens
are continued up to 256 tokens in all; generated tokens a second. Non-autoregressive: texts of 57 to 256 tokens, three
quarters of them gaps, in 16 network calls; tokens of the texts a second. Both kinds of batches take turns; each turn of
different lengths is compared with the mean of the turns of equal ones just before and after it. Seconds are those of
the process on a core, with one thread, so that others on the machine do not count.

python benchmarks/ragged_prompts.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import torch

from nar_scale.checkpoint import LoadedModel, ModelInfo
from nar_scale.config import validate_config
from nar_scale.data import ByteTokenizer
from nar_scale.decoding import DecodeManifest, SamplingOptions
from nar_scale.generation import Request, generate_samples
from nar_scale.objectives import build_wrapper

LENGTH, PROMPTS, PART, BATCH = 256, 200, 64, 16
VOCABULARY = 257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5, help="of different lengths")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{os.uname().machine}, {os.cpu_count()} cores, torch {torch.__version__}, 1 thread")
    for kind, different, equal in (
        ("autoregressive", prompts(range(1, 1 + PROMPTS)), prompts([PROMPTS // 2] * PROMPTS)),
        (
            "non_autoregressive",
            texts(range(1 + LENGTH - PROMPTS, 1 + LENGTH)),
            texts([LENGTH - PROMPTS // 2] * PROMPTS),
        ),
    ):
        model = build(kind, arguments.dim, arguments.depth)
        rate(model, different[:BATCH])  # warm-up
        baseline, rates, ratios = [rate(model, equal)], [], []
        for _ in range(arguments.turns):
            rates.append(rate(model, different))
            baseline.append(rate(model, equal))
            ratios.append(rates[-1] / statistics.mean(baseline[-2:]))
        print(
            f"{kind}: {statistics.median(rates):.0f} tokens/s of different lengths, {statistics.median(baseline):.0f} "
            f"of equal ones; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def prompts(lengths: Sequence[int]) -> list[Request]:
    """Prompts of so many tokens."""
    return [Request(number, prompt="x" * length) for number, length in scattered(lengths)]


def texts(lengths: Sequence[int]) -> list[Request]:
    """Texts of so many tokens, of which the last three quarters are to be filled in."""
    return [
        Request(number, text="x" * (length // 4) + f"<mask:{length - length // 4}>")
        for number, length in scattered(lengths)
    ]


def scattered(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Lengths in an order without order, numbered."""
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    return list(enumerate(lengths[place] for place in order))


def build(kind: str, dim: int, depth: int) -> LoadedModel:
    """An untrained model."""
    values = {
        "model": {"dim": dim, "depth": depth, "heads": 4, "max_seq_len": LENGTH},
        "objective": {"kind": kind},
        "data": {"directory": "nowhere"},
        "decoding": {} if kind == "autoregressive" else {"sampler": "random", "steps": 16},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    }
    config = validate_config(values, "the benchmark")
    torch.manual_seed(0)
    wrapper = build_wrapper(config, VOCABULARY).eval()
    # without an end token, so that every text goes on to the end
    info = ModelInfo(VOCABULARY, "byte", 1, 1, "fp32", DecodeManifest.of(config, wrapper.mask_id, None))
    return LoadedModel(wrapper, config, info, ByteTokenizer())


def rate(model: LoadedModel, requests: Sequence[Request]) -> float:
    """Tokens a second."""
    start, tokens = time.process_time(), 0
    for first in range(0, len(requests), PART):
        part = requests[first : first + PART]
        tokens += sum(len(sample.tokens) for sample in generate_samples(model, part, SamplingOptions(), BATCH))
    return tokens / (time.process_time() - start)


if __name__ == "__main__":
    main()
