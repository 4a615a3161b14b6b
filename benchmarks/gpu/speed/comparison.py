"""Training beside x-transformers: the same weights, shapes and tokens, the same plain loop in bf16 around both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.gpu.speed.attempts import Attempts, goal, is_out_of_memory, release_memory
from benchmarks.gpu.speed.clock import median_ratio, synchronize, take_turns
from benchmarks.gpu.speed.peers import Objective, Shape, Twins, difference, make_twins, random_tokens

EAGER_GOAL, COMPILED_GOAL = 2.0, 1.2


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        name: of the model in names of measurements.
        shape: of the model.
        micro_batches: sequences in a step, the first that fit.
        calls: steps in a turn.
        seconds: that turns of all contenders take at most, once without and once with the compiled one.
        compile_seconds: that the compilation of theirs takes.
    """

    name: str
    shape: Shape
    micro_batches: tuple[int, ...]
    calls: int
    seconds: float
    compile_seconds: float


def compare_training(objective: Objective, setting: Setting, attempts: Attempts) -> None:
    """Measure both, ours with compiled blocks and without, theirs as it is and, if there is time, compiled."""
    for micro_batch in setting.micro_batches:
        try:
            return _Comparison(objective, setting, attempts, micro_batch).measure()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or micro_batch == setting.micro_batches[-1]:
                raise
        attempts.record.note(f"{setting.name} {objective} beside x-transformers: {micro_batch} sequences do not fit")
        release_memory(attempts.device)


class _Comparison:
    def __init__(self, objective: Objective, setting: Setting, attempts: Attempts, micro_batch: int):
        self.objective, self.setting, self.attempts = objective, setting, attempts
        self.device, self.micro_batch = attempts.device, micro_batch
        self.prefix = f"{setting.name} {objective}"
        self.tokens = random_tokens(setting.shape, micro_batch, setting.shape.length, self.device)

    def measure(self) -> None:
        """First what is quickly compiled, then the rest."""
        twins = make_twins(self.objective, self.setting.shape, self.device, compile=True)
        apart = difference(twins, self.objective, self.tokens[:1])
        eager_twin = deepcopy(twins.ours)
        eager_twin.net.attn_layers.compile_blocks = False
        steps = {
            "ours, compiled": self._step(twins.ours),
            "ours, eager": self._step(eager_twin),
            "theirs, eager": self._step(twins.theirs),
        }
        self._record_agreement({name: float(step()) for name, step in steps.items()}, apart)
        times = self._turns(steps)
        for name in steps:
            self._record_speed(name, times[name])
        ours, eager = times["ours, compiled"], times["theirs, eager"]
        self._record_ratio("eager", ours, eager, EAGER_GOAL)
        self._record_ratio("eager, ours eager", times["ours, eager"], eager, None)
        del steps, eager_twin
        if self.attempts.enough_for(f"{self.prefix} beside compiled x-transformers", self.setting.compile_seconds):
            self._beside_compiled(twins)

    def _beside_compiled(self, twins: Twins) -> None:
        theirs = twins.theirs
        if self.objective == "AR":
            theirs = torch.compile(theirs)
        else:  # it tosses coins, and would be compiled once for each outcome
            theirs.net = torch.compile(theirs.net)
        name = "theirs, compiled"
        steps = {"ours, compiled": self._step(twins.ours), name: self._step(theirs)}
        times = self._turns(steps)
        self._record_speed(name, times[name])
        self._record_ratio("compiled", times["ours, compiled"], times[name], COMPILED_GOAL)

    def _step(self, wrapper: nn.Module) -> Callable[[], Tensor]:
        """A step of a plain loop, which returns its loss."""
        optimizer = torch.optim.AdamW(wrapper.train().parameters(), lr=1e-4, weight_decay=0.1, fused=True)

        def step() -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                result = wrapper(self.tokens)
                loss: Tensor = result if isinstance(result, Tensor) else result.loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    def _turns(self, steps: Mapping[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
        for step in steps.values():
            for _ in range(2):  # compilation, and the optimizer's moments
                step()
        synchronize(self.device)
        setting = self.setting
        return take_turns(steps, self.device, rounds=5, calls=setting.calls, seconds=setting.seconds)

    def _record_agreement(self, first_losses: Mapping[str, float], apart: float) -> None:
        self.attempts.record.add(
            f"{self.prefix} difference to x-transformers in float32",
            apart,
            "nats" if self.objective == "AR" else "standard deviations of a logit",
            first_losses_in_bf16=first_losses,
        )

    def _record_speed(self, name: str, times: list[float]) -> None:
        seconds = statistics.median(times)
        self.attempts.record.add(
            f"{self.prefix} plain loop: {name}",
            self.tokens.numel() / seconds,
            "tokens/s",
            micro_batch=self.micro_batch,
            length=self.tokens.shape[1],
            step_ms=[1e3 * time for time in times],
        )

    def _record_ratio(self, name: str, ours: list[float], theirs: list[float], least: float | None) -> None:
        ratio = median_ratio(theirs, ours)
        self.attempts.record.add(
            f"{self.prefix} training over x-transformers {name}",
            ratio,
            "x",
            micro_batch=self.micro_batch,
            headline=least is not None,
            **({} if least is None else goal(ratio, least)),
        )
