"""Peak memory and time of the loss of a large vocabulary: all logits at once, ours in chunks, and torch's own.

    python benchmarks/logits_memory.py [--tokens 4096] [--vocabulary 50304] [--dim 256]

Each way runs in a process of its own; memory is what it holds at most beyond embeddings, weight and their gradients.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from anywhere
from nar_scale.model import Head

WAYS = ("all at once", "nar_scale", "torch linear_cross_entropy")


def token_losses(logits: Tensor, answers: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), answers, reduction="none")


def loss(way: str, head: Head, embeddings: Tensor, answers: Tensor) -> Tensor:
    """The mean loss in nats, as a user of each way would write it."""
    if way == "all at once":
        return token_losses(head(embeddings), answers).mean()
    if way == "nar_scale":
        return head(embeddings, token_losses, answers).mean()
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(embeddings, head.weight, answers, reduction="none", options=options).mean()


def measure(way: str, tokens: int, vocabulary: int, dim: int, chunk_size: int) -> None:
    torch.manual_seed(0)
    head = Head(dim, vocabulary, chunk_size=chunk_size)
    embeddings = torch.randn(tokens, dim, requires_grad=True)
    answers = torch.randint(vocabulary, (tokens,))
    head.weight.grad, embeddings.grad = torch.ones_like(head.weight), torch.ones_like(embeddings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    value = loss(way, head, embeddings, answers)
    value.backward()
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    norm = head.weight.grad.sub(1).norm()
    print(f"{way:30}{peak:10.2f} GiB{seconds:9.1f} s   loss {value.item():.5f}, gradient {norm:.5f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--chunk-size", type=int, default=2**24)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options.tokens, options.vocabulary, options.dim, options.chunk_size)
        return
    print(f"{options.tokens} tokens, vocabulary {options.vocabulary}, dim {options.dim}, float32, 1 thread\n")
    for way in WAYS:
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", way],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


if __name__ == "__main__":
    main()
