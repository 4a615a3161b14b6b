"""How much steadier the loss is with the masked fraction stratified over the batch than drawn for each sequence.

    python benchmarks/stratification.py [--batches 2000]

A trained-like net is stood in for by cross-entropies that depend on the masked fraction as those of real models do:
the more is masked, the harder a token. For one fixed set of sequences the loss of a batch is estimated again and again
with new masks; printed is the variance of the estimate, and that of the gradient of a small real net.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from anywhere
from benchmarks.sources import MarkovSource
from nar_scale import Encoder, NonAutoregressiveWrapper, TransformerWrapper
from nar_scale.masking import Noise, hash_counters

SYMBOLS, N, BATCH = 6, 32, 64


def independent(noise: Noise) -> Noise:
    """The same noise, but with a masked fraction for each sequence that knows nothing of the others'."""
    return dataclasses.replace(noise, strata=hash_counters(noise.keys, 999))


def trained(schedule: str, steps: int) -> NonAutoregressiveWrapper:
    """A wrapper trained for a moment, so that its losses are those of a model that knows something."""
    torch.manual_seed(0)
    layers = Encoder(dim=48, depth=2, heads=4)
    net = TransformerWrapper(num_tokens=SYMBOLS + 1, max_seq_len=N, attn_layers=layers)
    wrapper = NonAutoregressiveWrapper(
        net, mask_id=SYMBOLS, schedule=schedule, no_replace_prob=0.0, random_token_prob=0.0
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
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokens = MarkovSource(SYMBOLS).sample(BATCH, N)
    print(f"the same {BATCH} sequences of {N} tokens, {arguments.batches} draws of their masks\n")
    print(f"{'schedule':10}{'':12}{'stratified':>12}{'i.i.d.':>12}{'factor':>9}")
    for schedule in ("linear", "cosine"):
        wrapper = trained(schedule, arguments.steps).eval()
        even, loose = (estimates(wrapper, tokens, arguments.batches, stratified) for stratified in (True, False))
        for name, ours, theirs in zip(("loss", "gradient"), even, loose):
            print(f"{schedule:10}{'Var ' + name:12}{ours:12.3g}{theirs:12.3g}{theirs / ours:8.1f}x", flush=True)


if __name__ == "__main__":
    main()
