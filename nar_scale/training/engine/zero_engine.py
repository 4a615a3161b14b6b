"""The one boundary to DeepSpeed: everything else in the package is typed against `ZeroEngine`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nar_scale.checkpoint import Partition, PartitionReader
from nar_scale.checkpoint.weights import StartingWeights
from nar_scale.config import OptimizerConfig
from nar_scale.data import Batch
from nar_scale.objectives import LossTerms, Objective
from nar_scale.training.engine.flops import count_next_forward
from nar_scale.training.engine.fragments import torch_optimizer
from nar_scale.training.engine.nonfinite import all_finite, drop_non_finite_gradients, with_non_finite_gradient
from nar_scale.training.engine.state import (
    held_tensors,
    loss_scale_is_exhausted,
    loss_scale_of,
    partitions_of,
    restore_loss_scale,
    restore_partitions,
)

StepObserver = Callable[[list[Tensor]], None]
"""Called with the master weights that torch's optimizer steps in one call."""


@dataclass(frozen=True)
class MuonSettings:
    """Learning rate and decoupled weight decay that Muon's next step, or its last one, uses."""

    learning_rate: float
    weight_decay: float


class ZeroEngine:
    """A DeepSpeed engine around a wrapper, typed.

    Constructing one changes nothing; `build_engine` makes the DeepSpeed engine.

    Args:
        engine: from `deepspeed.initialize`.
        config: learning rates of the parameter groups.
    """

    def __init__(self, engine: Any, config: OptimizerConfig):
        self._engine = engine
        self._config = config

    @property
    def module(self) -> Objective:
        """The wrapper. Under ZeRO 3 its weights are whole only inside forward passes and `gathered`."""
        return self._engine.module

    @property
    def stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self._engine.zero_optimization_stage())

    # --- the loss

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the loss terms, in order."""
        return self.module.term_names

    def counts(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """What each loss term of the batch will be divided by, float32 `[terms]`, without running the net."""
        return self.module.counts(batch, seed=seed)

    def __call__(self, batch: Batch, *, seed: int = 0) -> LossTerms:
        """The loss terms of a batch; a collective under ZeRO 3.

        Args:
            batch: on the engine's device.
            seed: of the masks.
        """
        return self._engine(batch, seed=seed)

    # --- a step

    @property
    def accumulation(self) -> int:
        """Micro-batches of each rank in a step."""
        return int(self._engine.gradient_accumulation_steps())

    def set_accumulation(self, micro_batches: int) -> None:
        """Take the next step with this many micro-batches a rank."""
        engine = self._engine
        if engine.gradient_accumulation_steps() != micro_batches:
            micro_batch_size = engine.train_micro_batch_size_per_gpu()
            engine.set_train_batch_size(micro_batches * micro_batch_size * engine.dp_world_size)
            if self.stage > 0:  # whose optimizers have a copy
                engine.optimizer.gradient_accumulation_steps = engine.gradient_accumulation_steps()

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Those of the last step, one for each group of parameters."""
        return tuple(float(group["lr"]) for group in self._engine.optimizer.param_groups)

    def set_learning_rates(self, factor: float) -> None:
        """Use this factor of each parameter group's configured learning rate in the next step."""
        config = self._config
        of_muon = config.muon_learning_rate if config.kind == "muon" else config.learning_rate
        for group in self._engine.optimizer.param_groups:
            group["lr"] = factor * (of_muon if group.get("use_muon") else config.learning_rate)

    @property
    def muon_settings(self) -> MuonSettings:
        """Those of the one group of parameters that Muon steps.

        Raises:
            ValueError: the optimizer is another one.
        """
        (group,) = (group for group in self._engine.optimizer.param_groups if group.get("use_muon"))
        return MuonSettings(float(group["lr"]), float(group["weight_decay"]))

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of a micro-batch's loss to those of its step.

        Args:
            loss: a scalar. Gradients are averaged over all ranks. If it is not finite, so is the whole gradient, and
                the step is skipped on all ranks.
            last: whether it is the last micro-batch of the step.
        """
        engine = self._engine
        engine.set_gradient_accumulation_boundary(last)
        if self.stage == 0 and engine.fp16_enabled():  # here DeepSpeed divides gradients by a scale that it left out
            loss = loss.float() * engine.optimizer.loss_scale_config.cur_scale
        engine.backward(with_non_finite_gradient(loss), scale_wrt_gas=False)

    def step(self) -> None:
        """End a micro-batch; after the last of a step, clip the gradient and step the optimizer.

        DeepSpeed clips, to `gradient_clipping` of the resolved config (`optimizer.max_gradient_norm` in the YAML).
        """
        self._engine.step()

    @property
    def step_applied(self) -> bool:
        """Whether the last step changed the weights; it did not if its gradient was not finite."""
        return bool(self._engine.was_step_applied())

    @property
    def gradient_norm(self) -> float | None:
        """Global gradient norm of the last step, before clipping; None where DeepSpeed has not computed it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    # --- steps that are not finite

    def skip_non_finite_steps(self) -> None:
        """From now on let every step whose gradient is not finite leave weights and optimizer state as they are.

        DeepSpeed does so by itself except at stage 0 in fp32, where the engine steps torch's own optimizer. That one
        passes over parameters that have no gradient. `step_applied` shows at every stage whether it was.
        """
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        optimizer = self._engine.optimizer
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.register_step_pre_hook(drop_non_finite_gradients)
        scaler = getattr(optimizer, "loss_scaler", None)
        if isinstance(scaler, DynamicLossScaler):
            scaler.raise_error_at_min_scale = False  # `loss_scale_is_exhausted` shows it

    @property
    def loss_scale_is_exhausted(self) -> bool:
        """Whether fp16's loss scale cannot fall any further; true in other precisions, which have none."""
        return loss_scale_is_exhausted(self._engine)

    def is_finite(self) -> bool:
        """Whether the weights and the optimizer state that this rank holds are; what is on NVMe is not looked at."""
        return all_finite(held_tensors(self._engine))

    # --- weights and optimizer state

    def partitions(self) -> Iterator[Partition]:
        """The master weights and optimizer state that this rank is to save.

        Where every rank holds everything, each gives an equal share. The tensors are the engine's own: they change with
        the next step, and those of an optimizer on NVMe are there only until the next partition is asked for.
        """
        return partitions_of(self._engine)

    def restore(self, source: PartitionReader | StartingWeights, ignored: Collection[str] = ()) -> None:
        """Load the weights of a source, and what it has of the optimizer state.

        Args:
            ignored: kinds of state that are not loaded.

        Raises:
            CheckpointError: the source has other parameters than this engine.
        """
        restore_partitions(self._engine, source, ignored)

    @property
    def loss_scale(self) -> dict[str, float]:
        """The state of fp16's loss scaling; empty in other precisions."""
        return loss_scale_of(self._engine)

    def restore_loss_scale(self, saved: Mapping[str, float]) -> None:
        """Set the state of fp16's loss scaling to an earlier `loss_scale`."""
        restore_loss_scale(self._engine, saved)

    def whole_weight(self, parameter: nn.Parameter) -> Tensor:
        """A copy of a parameter's master weight, gathered from all ranks; of the parameter where it has no master."""
        from deepspeed.utils import safe_get_full_fp32_param

        master = safe_get_full_fp32_param(parameter)
        return (parameter if master is None else master).detach().clone()

    def gathered(self) -> AbstractContextManager[None]:
        """A `with` block in which the wrapper's own weights are whole, for use outside of its `forward`.

        Under ZeRO 3 the modules within it gather theirs as they run.
        """
        from deepspeed import zero

        return zero.GatheredParameters(list(self.module.parameters(recurse=False)))

    # --- observation

    def observe_optimizer(self, before: StepObserver, after: StepObserver) -> None:
        """From now on call `before` and `after` around each call of torch's optimizer, with the weights it steps.

        Under every ZeRO stage these are the master weights that this rank holds, be it one group of parameters after
        the other, on the host, or fetched from NVMe for the moment.
        """

        def call(observer: StepObserver) -> Callable[..., None]:
            def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                observer([weight for group in optimizer.param_groups for weight in group["params"]])

            return hook

        optimizer = torch_optimizer(self._engine)
        optimizer.register_step_pre_hook(call(before))
        optimizer.register_step_post_hook(call(after))

    def count_flops(self, path: Path, step: int, on_written: Callable[[], None]) -> None:
        """Count the operations of the next forward pass and write the account of each module to a file.

        Args:
            path: of the file.
            step: named in the file.
            on_written: called afterwards.
        """
        count_next_forward(self._engine, path, step, on_written)
