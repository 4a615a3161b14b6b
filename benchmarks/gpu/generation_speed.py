"""Generation speed beside x-transformers, with the same weights: left to right, and by demasking.

python -m benchmarks.gpu.generation_speed --output FILE.json [--seconds N] [--rehearse]

A model of 12 blocks of width 768 with random weights, in bfloat16 on both sides, with a vocabulary of 256 and of 32,768
tokens, one sequence at a time and 16. AR: 200 tokens after a prompt of 16, with a key/value cache, sampled from the
likeliest tenth of the vocabulary (`top_k`), the default of both. NAR: 256 tokens in 18 network calls. Both take turns;
ratios are medians over turns. Ours is also measured compiled, which takes most of the time; all takes some five minutes
on an H100, and what does not fit is left out, from the end of the list in `measure`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu import stage
from benchmarks.gpu.speed.attempts import Attempts, goal, prepare_rehearsal
from benchmarks.gpu.speed.clock import median_ratio, take_turns
from benchmarks.gpu.speed.peers import Objective, Shape, difference, make_twins, random_tokens
from nar_scale.objectives import AutoregressiveWrapper, NonAutoregressiveWrapper

GOAL = 4.0
ROUNDS = 3
SECONDS: dict[Objective, float] = {"AR": 10.0, "NAR": 3.0}  # that a batch takes on an H100
COMPILE_SECONDS = 25.0


@dataclass(frozen=True)
class Scale:
    """What differs between a GPU and a rehearsal.

    Attributes:
        shape: of the models, but for the vocabulary; its length is what NAR generates.
        vocabularies: that are measured, the first with figures in the short table.
        prompt: tokens given to AR.
        new: tokens that AR generates.
        steps: network calls of NAR.
        seconds: after which no further turn begins, of a vocabulary and a batch.
    """

    shape: Shape
    vocabularies: tuple[int, int]
    prompt: int
    new: int
    steps: int
    seconds: float


GPU = Scale(
    shape=Shape(dim=768, depth=12, heads=12, hidden=2048, length=256, vocabulary=0),
    vocabularies=(32_768, 256),
    prompt=16,
    new=200,
    steps=18,
    seconds=6.0,
)
REHEARSAL = Scale(
    shape=Shape(dim=64, depth=1, heads=2, hidden=176, length=32, vocabulary=0),
    vocabularies=(512, 256),
    prompt=4,
    new=8,
    steps=4,
    seconds=0.5,
)


def main() -> int:
    arguments = stage.arguments(__doc__)
    if arguments.rehearse:
        prepare_rehearsal()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attempts = Attempts(stage.Record(arguments.output), arguments.seconds, device, arguments.rehearse)
    measure(attempts, REHEARSAL if arguments.rehearse else GPU)
    return int(attempts.failed)


def measure(attempts: Attempts, scale: Scale) -> None:
    """Everything, what tells most first."""
    large, small = scale.vocabularies
    order: list[tuple[Objective, int, tuple[int, ...], bool]] = [
        ("NAR", large, (1, 16), False),
        ("AR", large, (1, 16), False),
        ("AR", large, (1,), True),
        ("NAR", large, (1,), True),
        ("NAR", small, (1, 16), False),
        ("AR", small, (1, 16), False),
        ("AR", large, (16,), True),
        ("NAR", large, (16,), True),
        ("AR", small, (1, 16), True),
        ("NAR", small, (1, 16), True),
    ]
    for objective, vocabulary, batches, compiled in order:
        comparison = Comparison(attempts, scale, objective, replace(scale.shape, vocabulary=vocabulary), compiled)
        what = f"{objective} generation, vocabulary {vocabulary}{', compiled' if compiled else ''}"
        needed = len(batches) * (SECONDS[objective] + compiled * COMPILE_SECONDS)
        attempts.run(what, needed, partial(comparison.measure, batches))


@dataclass(frozen=True)
class Comparison:
    """A model here and in x-transformers; ours compiled or not, theirs as it is."""

    attempts: Attempts
    scale: Scale
    objective: Objective
    shape: Shape
    compiled: bool

    def measure(self, batches: Sequence[int]) -> None:
        """Measure both with each batch, and record how far they are apart."""
        device, autoregressive = self.attempts.device, self.objective == "AR"
        twins = make_twins(self.objective, self.shape, device, steps=self.scale.steps)
        prefix = f"{self.objective} generation, vocabulary {self.shape.vocabulary}"
        if not self.compiled:
            apart = difference(twins, self.objective, random_tokens(self.shape, 1, self.shape.length, device))
            unit = "nats" if autoregressive else "standard deviations of a logit"
            self.attempts.record.add(f"{prefix}: difference to x-transformers in float32", apart, unit)
        ours, theirs = (twin.to(torch.bfloat16).eval() for twin in twins)
        for batch in batches:
            tokens = batch * (self.scale.new if autoregressive else self.shape.length)
            contenders = {"ours": self._generator(ours, batch), "theirs": self._generator(theirs, batch)}
            for name, generate in contenders.items():  # which also warms up
                if (found := generate().numel()) != tokens:
                    raise ValueError(f"{name} generated {found} tokens, not {tokens}")
            times = take_turns(contenders, device, rounds=ROUNDS, calls=1, seconds=self.scale.seconds)
            self._record(f"{prefix}, batch {batch}", tokens, times)

    def _generator(self, wrapper: nn.Module, batch: int) -> Callable[[], Tensor]:
        """What generates a batch with a wrapper of either library."""
        generate: Callable[..., Tensor] = wrapper.generate  # type: ignore[assignment]
        ours = isinstance(wrapper, (AutoregressiveWrapper, NonAutoregressiveWrapper))
        options = {"compile": True} if ours and self.compiled else {}
        if self.objective == "NAR":
            return partial(generate, batch, **options)
        if ours:
            options["return_prompt"] = False
        prompts = random_tokens(self.shape, batch, self.scale.prompt, self.attempts.device)
        return partial(generate, prompts, self.scale.new, filter_logits_fn="top_k", **options)

    def _record(self, name: str, tokens: int, times: Mapping[str, list[float]]) -> None:
        record, how = self.attempts.record, ", compiled" if self.compiled else ""
        for contender, seconds in times.items():
            rate = tokens / statistics.median(seconds)
            if contender == "ours" or not self.compiled:
                extras = {"ms": [1e3 * each for each in seconds]}
                record.add(f"{name}: {contender}{how}", rate, "tokens/s", **extras)
        ratio = median_ratio(times["theirs"], times["ours"])
        shown = self.shape.vocabulary == self.scale.vocabularies[0]
        record.add(f"{name}, over x-transformers{how}", ratio, "x", headline=shown, **goal(ratio, GOAL))


if __name__ == "__main__":
    sys.exit(main())
