"""How much steadier the loss is with the masked fraction stratified over the batch than drawn for each sequence.

    python benchmarks/stratification.py [--batches 200]

A small net is trained for a moment. Then the loss of one fixed batch is estimated again and again with new masks, and
the variance of the estimate over the draws is printed, and that of the gradient of the output projection. What is left
with stratification is the choice of the tokens, given how many are masked.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from anywhere
from benchmarks.sources import MarkovSource
from nar_scale import Encoder, NonAutoregressiveWrapper, TransformerWrapper
from nar_scale.masking import Masking, Noise, hash_counters

SYMBOLS, N, BATCH = 6, 128, 64


def independent(noise: Noise) -> Noise:
    """The same noise, but with a masked fraction for each sequence that knows nothing of the others'."""
    return dataclasses.replace(noise, strata=hash_counters(noise.keys, 999))


def trained(schedule: str, masking: Masking, steps: int) -> NonAutoregressiveWrapper:
    """A wrapper trained for a moment, so that its losses are those of a model that knows something."""
    torch.manual_seed(0)
    layers = Encoder(dim=48, depth=2, heads=4)
    net = TransformerWrapper(num_tokens=SYMBOLS + 1, max_seq_len=N, attn_layers=layers)
    wrapper = NonAutoregressiveWrapper(
        net, mask_id=SYMBOLS, schedule=schedule, masking=masking, no_replace_prob=0.0, random_token_prob=0.0
    )
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=3e-3)
    source = MarkovSource(SYMBOLS)
    for _ in range(steps):
        loss = wrapper(source.sample(BATCH, N)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return wrapper


def estimates(wrapper: NonAutoregressiveWrapper, tokens: Tensor, batches: int, stratified: bool) -> tuple[float, float]:
    """Variance of the loss, and of the gradient (its trace over the output projection), over `batches` new masks."""
    losses, gradients = [], []
    for batch in range(batches):
        noise = Noise.of_requests(batch, torch.arange(len(tokens)))
        terms = wrapper._loss_terms(tokens, noise if stratified else independent(noise), None)
        loss = terms.total()
        (gradient,) = torch.autograd.grad(loss, wrapper.net.to_logits.weight)
        losses.append(loss.detach().double())
        gradients.append(gradient.flatten().double())
    return float(torch.stack(losses).var()), float(torch.stack(gradients).var(dim=0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokens = MarkovSource(SYMBOLS).sample(BATCH, N)
    print(f"the same {BATCH} sequences of {N} tokens, {arguments.batches} draws of their masks\n")
    print(f"{'schedule':10}{'masking':12}{'':14}{'stratified':>12}{'i.i.d.':>12}{'factor':>9}")
    for schedule, masking in product(("linear", "cosine"), get_args(Masking)):
        wrapper = trained(schedule, masking, arguments.steps).eval()
        even, loose = (estimates(wrapper, tokens, arguments.batches, stratified) for stratified in (True, False))
        for name, ours, theirs in zip(("loss", "gradient"), even, loose):
            print(
                f"{schedule:10}{masking:12}{'Var ' + name:14}{ours:12.3g}{theirs:12.3g}{theirs / ours:8.1f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
