"""What a small model learns of one text file in a given number of steps, with the settings on the command line.

    python benchmarks/learning.py shakespeare.txt
    python benchmarks/learning.py shakespeare.txt --seeds 3 objective.loss=unweighted optimizer.kind=muon

The setting is benchmarks/learning.yaml, changed by `section.key=value`: a character-level model of the first 90 % of
the text, judged by the last 10 %. It prints one line for each seed: the negative log-likelihood in nats per character
(exact for autoregressive models, an upper bound for others), its standard error, and the processor seconds of training.
Any text file does. RESULTS.md says where Tiny Shakespeare is to be had, EXPERIMENTS.md what was found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from anywhere
from nar_scale.config import Config, load_config, steps_of_run
from nar_scale.data import Batch
from nar_scale.evaluation import Likelihood, evaluate_likelihood
from nar_scale.objectives import Objective, build_wrapper
from nar_scale.training.optimizers.build import build_optimizer
from nar_scale.training.optimizers.learning_rate import learning_rate_factor

SETTING = Path(__file__).with_suffix(".yaml")
PASSES = 4
"""How often the validation part is judged with new masks."""


def characters(text: str) -> tuple[Tensor, int]:
    """A text as numbers of its characters, int64, and how many different ones there are."""
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[character] for character in text]), len(alphabet)


def batch_of(text: Tensor, starts: Tensor, length: int, first: int) -> Batch:
    """Windows of a text that begin at `starts`; the first has position `first` in the stream."""
    tokens = text[starts[:, None] + torch.arange(length)]
    positions = first + torch.arange(len(starts))
    return Batch(tokens, torch.full_like(starts, length), positions, torch.zeros_like(starts), positions)


def window_length(config: Config) -> int:
    """Characters of a window: an autoregressive model is given one more, since the first is not predicted."""
    return config.model.max_seq_len + (config.objective.kind == "autoregressive")


def train(config: Config, text: Tensor, symbols: int, seed: int) -> Objective:
    """A model trained on random windows of a text."""
    torch.manual_seed(seed)
    wrapper = build_wrapper(config, symbols).train()
    optimizer = build_optimizer(wrapper, config.optimizer)
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps, size, length = steps_of_run(config), config.training.global_batch_size, window_length(config)
    for step in range(steps):
        factor = learning_rate_factor(config.schedule, step, steps)
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * factor
        starts = torch.randint(len(text) - length, (size,))
        wrapper.loss_terms(batch_of(text, starts, length, step * size), seed=seed).total().backward()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), config.optimizer.gradient_clipping or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
    return wrapper


def judge(wrapper: Objective, config: Config, text: Tensor) -> Likelihood:
    """The likelihood of a text, cut into windows."""
    length = window_length(config)
    starts = torch.arange(0, len(text) - length, config.model.max_seq_len).repeat(PASSES if wrapper.mask_id else 1)

    def batches() -> Iterator[Batch]:
        first = 0
        for part in starts.split(64):
            yield batch_of(text, part, length, first)
            first += len(part)

    return evaluate_likelihood(wrapper, batches())


def main() -> None:
    """Train and judge one model for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("settings", nargs="*", help="section.key=value, over learning.yaml")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs (default 1)")
    arguments = parser.parse_intermixed_args()
    config = load_config(SETTING, arguments.settings)
    text, symbols = characters(arguments.text.read_text(encoding="utf-8"))
    part = len(text) * 9 // 10
    for seed in range(arguments.seeds):
        start = time.process_time()
        wrapper = train(config, text[:part], symbols, seed)
        seconds = time.process_time() - start
        found = judge(wrapper, config, text[part:])
        print(f"seed {seed}: {found}, {seconds:.0f} s of a core", flush=True)


if __name__ == "__main__":
    main()
