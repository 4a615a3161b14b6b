"""What the loss weight does: our bound against x-transformers' default, on a source of known entropy.

    python benchmarks/loss_weighting.py [--steps 300]

Both wrappers train nets of the same width and depth (56 k parameters here, 76 k there: gated units differ) on the same
sequences with the same optimizer. x-transformers 2.31.10 reads MDLM's weight with the masked fraction, which turns its
sign: the loss is minimised by predicting badly. Its unweighted loss (`use_simple_mdlm_loss_weight=False`) is shown
beside it. All nets are judged by the same yardstick, the negative-log-likelihood bound of validation sequences.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from anywhere
from benchmarks.sources import MarkovSource
from nar_scale import Encoder, NonAutoregressiveWrapper, TransformerWrapper
from nar_scale.masking import Noise, get_schedule, mask_tokens

SYMBOLS, N, DIM, DEPTH, HEADS = 6, 16, 48, 2, 4
MASK_ID = SYMBOLS


def ours(schedule: str) -> tuple[nn.Module, nn.Module]:
    """A net of ours and its wrapper."""
    layers = Encoder(dim=DIM, depth=DEPTH, heads=HEADS)
    net = TransformerWrapper(num_tokens=SYMBOLS + 1, max_seq_len=N, attn_layers=layers)
    options: dict[str, Any] = {"no_replace_prob": 0.0, "random_token_prob": 0.0}
    return net, NonAutoregressiveWrapper(net, mask_id=MASK_ID, schedule=schedule, **options)


def theirs(schedule: str, weighted: bool) -> tuple[nn.Module, nn.Module]:
    """A net of x-transformers and its wrapper."""
    import x_transformers
    from loguru import logger

    logger.disable("x_transformers")
    layers = x_transformers.Encoder(
        dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=DIM // HEADS, rotary_pos_emb=True, ff_glu=True, ff_swish=True
    )
    net = x_transformers.TransformerWrapper(num_tokens=SYMBOLS + 1, max_seq_len=N, attn_layers=layers)
    options: dict[str, Any] = {"no_replace_prob": 0.0, "random_token_prob": 0.0}
    wrapper = x_transformers.NonAutoregressiveWrapper(
        net, mask_id=MASK_ID, schedule=schedule, use_simple_mdlm_loss_weight=weighted, **options
    )
    return net, wrapper


@torch.no_grad()
def bound(net: Callable[[Tensor], Tensor], tokens: Tensor) -> tuple[float, float]:
    """Upper bound on the negative log-likelihood in nats per token, and its standard error."""
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    noise = Noise.of_requests(0, torch.arange(len(tokens)))
    masked = mask_tokens(tokens, everywhere, noise, get_schedule("linear"), MASK_ID, SYMBOLS + 1)
    logits = net(masked.tokens).float()
    logits[..., MASK_ID] = -torch.inf
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    rows = (losses * masked.mask).sum(dim=1) * masked.weights / N
    return float(rows.mean()), float(rows.std() / math.sqrt(len(rows)))


def train(wrapper: nn.Module, source: MarkovSource, steps: int) -> Iterator[float]:
    """Yield the training loss of each step."""
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = wrapper(source.sample(64, N)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    source = MarkovSource(SYMBOLS)
    validation = source.sample(8000, N)
    entropy = source.entropy(N)
    print(f"entropy of the source {entropy:.3f} nats/token, uniform guessing {math.log(SYMBOLS):.3f}; {steps} steps\n")
    print(f"{'wrapper':58}{'training loss':>14}{'validation bound':>20}{'over entropy':>14}")
    cases: list[tuple[str, Callable[[], tuple[nn.Module, nn.Module]]]] = []
    for schedule in ("linear", "cosine"):
        cases += [
            (f"nar_scale, {schedule}, weighted (default)", partial(ours, schedule)),
            (f"x-transformers, {schedule}, weighted (default)", partial(theirs, schedule, True)),
            (f"x-transformers, {schedule}, unweighted", partial(theirs, schedule, False)),
        ]
    for name, build in cases:
        torch.manual_seed(0)
        net, wrapper = build()
        *_, last = train(wrapper, MarkovSource(SYMBOLS), steps)
        nats, error = bound(net.eval(), validation)
        print(f"{name:58}{last:14.3f}{nats:13.3f} +-{error:.3f}{nats / entropy:13.2f}x", flush=True)


if __name__ == "__main__":
    main()
