"""The step loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nar_scale.checkpoint import CheckpointStore, TrainingState
from nar_scale.config import Config
from nar_scale.data import Batch
from nar_scale.errors import UserError
from nar_scale.evaluation import Likelihood, evaluate_likelihood, image_grid
from nar_scale.masking import hash_counters
from nar_scale.training.distributed import World
from nar_scale.training.engine import gradient_norm, set_learning_rate
from nar_scale.training.held_out import HeldOut
from nar_scale.training.monitor import Monitor
from nar_scale.training.optimizer import learning_rate_factor
from nar_scale.training.performance import Stopwatch, flops_per_token, peak_flops, peak_memory
from nar_scale.training.samples import generate_tokens, to_texts
from nar_scale.training.saving import save_checkpoint
from nar_scale.training.stop import StopRequest
from nar_scale.training.window import LossWindow


class Trainer:
    """Takes optimizer steps until the run is complete or somebody asks it to stop.

    Args:
        config: the run.
        engine: a DeepSpeed engine around a wrapper.
        batches: this rank's endless micro-batches, from the position of `state` on.
        state: where the run starts.
        store: where checkpoints go.
        held_out: data to evaluate on, if there is any.
        monitor: on the main process.
        stop: requests to stop.
    """

    def __init__(
        self,
        config: Config,
        engine: Any,
        world: World,
        batches: Iterable[Batch],
        state: TrainingState,
        store: CheckpointStore,
        held_out: HeldOut | None,
        monitor: Monitor | None,
        stop: StopRequest,
    ):
        self.config, self.engine, self.world, self.state = config, engine, world, state
        self.store, self.held_out, self.monitor, self.stop = store, held_out, monitor, stop
        self.batches = iter(batches)
        self.accumulation = engine.gradient_accumulation_steps()
        self.window = LossWindow()
        self.stopwatch = Stopwatch()
        self.stop_votes = torch.zeros((), dtype=torch.float64)
        self.votes_arrived: torch.cuda.Event | None = None
        self.saved_step = state.step

    def run(self) -> bool:
        """Train to the end of the run; returns whether it got there or was stopped, saved in either case."""
        while self.state.step < self.config.training.steps and not self.stop_agreed():
            micro_batches = self.load_micro_batches()
            counts = self.count(micro_batches)
            self.optimize(micro_batches, counts)
            self.state = replace(
                self.state,
                step=self.state.step + 1,
                samples=self.state.samples + self.config.training.global_batch_size,
            )
            self.report()
        if self.saved_step != self.state.step:
            self.save()
        return self.state.step >= self.config.training.steps

    def stop_agreed(self) -> bool:
        """Whether some rank had asked to stop before the last step; all ranks see the same answer."""
        if self.votes_arrived is not None:
            self.votes_arrived.synchronize()
        return bool(self.stop_votes > 0)

    def load_micro_batches(self) -> list[Batch]:
        """This rank's part of the next global batch, on its device."""
        with self.stopwatch:
            loaded = [next(self.batches) for _ in range(self.accumulation)]
        return [batch.to(self.world.device, non_blocking=True) for batch in loaded]

    def count(self, micro_batches: list[Batch]) -> Tensor:
        """What the loss terms of the global batch are divided by; the votes to stop travel along."""
        seed = self.config.training.seed
        counts = torch.stack([self.engine.module.counts(batch, seed=seed) for batch in micro_batches]).double().sum(0)
        vote = counts.new_tensor([float(bool(self.stop))])
        totals = self.world.sum(torch.cat((counts, vote)))
        # copied while the step runs, so that reading them does not wait for it
        self.stop_votes = totals[-1].to("cpu", non_blocking=True)
        if totals.is_cuda:
            self.votes_arrived = torch.cuda.Event()
            self.votes_arrived.record()
        return totals[:-1]

    def optimize(self, micro_batches: list[Batch], counts: Tensor) -> None:
        """One optimizer step: gradients of sums over the global normaliser, never means of means."""
        training, step = self.config.training, self.state.step
        factor = learning_rate_factor(self.config.schedule, step, training.steps)
        set_learning_rate(self.engine, self.config.optimizer.learning_rate * factor)
        for number, batch in enumerate(micro_batches):
            # dropout as a counter: a resumed run draws what the unbroken one would have drawn
            torch.manual_seed(int(hash_counters(training.seed, step, number, self.world.rank)) & (2**62 - 1))
            terms = self.engine(batch, seed=training.seed)
            loss = terms.total(counts.float()) * self.world.size  # DeepSpeed averages gradients over ranks
            self.engine.backward(loss, scale_wrt_gas=False)
            self.engine.step()
            self.window.add(terms)
        self.window.finish_step(counts)

    def report(self) -> None:
        """Log, evaluate, sample and save where this step is due for it."""
        logging, step = self.config.logging, self.state.step
        last = step == self.config.training.steps
        if step % logging.every == 0 or last:
            self.log()
        started = time.perf_counter()
        if self.held_out is not None and logging.evaluate_every and (step % logging.evaluate_every == 0 or last):
            self.evaluate(self.held_out)
        if logging.sample_every and (step % logging.sample_every == 0 or last):
            self.sample()
        if step % self.config.checkpoint.every == 0 or last:
            self.save()
        self.stopwatch.exclude(time.perf_counter() - started)

    def log(self) -> None:
        """Report the steps since the last report."""
        steps, values = self.window.reduce(self.world, self.engine.module.term_names)
        seconds, waiting = self.stopwatch.lap()
        tokens = self.config.training.global_batch_size * self.config.model.max_seq_len * steps
        norm = gradient_norm(self.engine)
        if norm is not None:
            values["gradient_norm"] = norm
        values["learning_rate"] = self.engine.optimizer.param_groups[0]["lr"]
        values["tokens_per_second"] = tokens / seconds
        values["data_wait_fraction"] = waiting
        values["memory_gib"] = peak_memory(self.world.device)
        peak = peak_flops(self.world.device)
        if peak is not None:
            values["mfu"] = flops_per_token(self.engine.module.net) * tokens / seconds / (peak * self.world.size)
        if self.monitor is not None:
            self.monitor.scalars(self.state.step, values)
            self.monitor.progress.update(self.state.step, values["loss"], values["tokens_per_second"])
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {self.state.step}; lower optimizer.learning_rate and run "
                f"again, to go on from the last checkpoint in {self.store.directory}"
            )

    def evaluate(self, held_out: HeldOut) -> Likelihood:
        """Measure the likelihood of held-out data."""
        likelihood = evaluate_likelihood(
            self.engine,
            held_out.batches(),
            self.world.device,
            reduce=self.world.sum,
            bytes_per_token=held_out.bytes_per_token,
        )
        if self.monitor is not None:
            values = {"nats_per_token": likelihood.nats_per_token, "standard_error": likelihood.standard_error}
            if likelihood.bits_per_byte is not None:
                values["bits_per_byte"] = likelihood.bits_per_byte
            self.monitor.scalars(self.state.step, values, group="validation")
            self.monitor.progress.say(f"step {self.state.step}, held out: {likelihood}")
        return likelihood

    def sample(self) -> None:
        """Generate a few sequences for the reader's eye."""
        tokens = generate_tokens(self.engine.module, self.config, self.state)
        shape = self.config.logging.image_shape
        if self.monitor is None:
            return
        if shape is None:
            self.monitor.texts(self.state.step, to_texts(tokens, self.state))
        else:
            self.monitor.image(self.state.step, image_grid(tokens.cpu().numpy(), shape, self.state.vocabulary_size))

    def save(self) -> None:
        """Write a checkpoint, unless the last step has spoilt the weights (fp16 skips such a step)."""
        norm = gradient_norm(self.engine)
        if norm is not None and not math.isfinite(norm) and self.config.training.precision != "fp16":
            raise UserError(
                f"the gradient norm is {norm} at step {self.state.step}, which is not saved; lower "
                f"optimizer.learning_rate and run again, to go on from the last checkpoint in {self.store.directory}"
            )
        save_checkpoint(self.store, self.engine, self.state, self.world, self.config)
        self.saved_step = self.state.step
