"""The step loop."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nar_scale.checkpoint import CheckpointStore, TrainingState
from nar_scale.config import Config
from nar_scale.data import Batch
from nar_scale.errors import DataError, UserError
from nar_scale.evaluation import Likelihood, evaluate_likelihood, image_grid
from nar_scale.masking import hash_counters
from nar_scale.training.data import TrainingData
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
        data: what they come from, and what to evaluate on.
        state: where the run starts.
        store: where checkpoints go.
        monitor: on the main process.
        stop: requests to stop.
    """

    def __init__(
        self,
        config: Config,
        engine: Any,
        world: World,
        batches: Iterable[Batch],
        data: TrainingData,
        state: TrainingState,
        store: CheckpointStore,
        monitor: Monitor | None,
        stop: StopRequest,
    ):
        self.config, self.engine, self.world, self.state = config, engine, world, state
        self.data, self.store, self.monitor, self.stop = data, store, monitor, stop
        self.batches = iter(batches)
        self.accumulation = engine.gradient_accumulation_steps()
        self.window = LossWindow()
        self.stopwatch = Stopwatch()
        self.votes = torch.zeros(2, dtype=torch.float64)
        self.votes_arrived: torch.cuda.Event | None = None
        self.saved_step = state.step

    def run(self) -> bool:
        """Train to the end of the run; returns whether it got there or was stopped, saved in either case."""
        stop_agreed = False
        while self.state.step < self.config.training.steps and not stop_agreed:
            micro_batches = self.load_micro_batches()
            counts = self.count(micro_batches)
            self.optimize(micro_batches, counts)
            stop_agreed, skipped = self.read_votes()
            self.advance(skipped)
            self.report()
        if self.saved_step != self.state.step:
            self.save()
        return self.state.step >= self.config.training.steps

    def load_micro_batches(self) -> list[Batch]:
        """This rank's part of the next global batch, on its device."""
        with self.stopwatch:
            loaded = [next(self.batches) for _ in range(self.accumulation)]
        for fault in (fault for batch in loaded for fault in batch.faults):
            print(f"skipped in step {self.state.step + 1}: {fault}", file=sys.stderr, flush=True)
        return [batch.to(self.world.device, non_blocking=True) for batch in loaded]

    def count(self, micro_batches: list[Batch]) -> Tensor:
        """What the loss terms of the global batch are divided by.

        Two votes travel along: how many ranks have been asked to stop, and how many samples were skipped.
        """
        seed = self.config.training.seed
        counts = torch.stack([self.engine.module.counts(batch, seed=seed) for batch in micro_batches]).double().sum(0)
        skipped = sum(len(batch.faults) for batch in micro_batches)
        totals = self.world.sum(torch.cat((counts, counts.new_tensor([float(bool(self.stop)), float(skipped)]))))
        # copied while the step runs, so that reading them does not wait for it
        self.votes = totals[-2:].to("cpu", non_blocking=True)
        if totals.is_cuda:
            self.votes_arrived = torch.cuda.Event()
            self.votes_arrived.record()
        return totals[:-2]

    def read_votes(self) -> tuple[bool, int]:
        """Whether some rank had asked to stop before this step, and the samples skipped in it; alike on all ranks."""
        if self.votes_arrived is not None:
            self.votes_arrived.synchronize()
        return bool(self.votes[0] > 0), int(self.votes[1])

    def advance(self, skipped: int) -> None:
        """Note that a step is done.

        Raises:
            DataError: more samples than allowed could not be used.
        """
        samples = self.state.samples + self.config.training.global_batch_size
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            samples=samples,
            source_samples=self.data.consumed(samples),
            skipped_samples=self.state.skipped_samples + skipped,
        )
        limit = self.config.data.max_skipped_samples
        if skipped and self.state.skipped_samples > limit:
            raise DataError(
                f"{self.state.skipped_samples} samples were skipped up to step {self.state.step}, more than "
                f"data.max_skipped_samples {limit} (they are named above); mend the shards or raise it"
            )

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
        if logging.evaluate_every and (step % logging.evaluate_every == 0 or last):
            for name, held_out in self.data.held_out.items():
                self.evaluate(name, held_out)
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
        if self.state.skipped_samples:
            values["skipped_samples"] = self.state.skipped_samples
        for name, consumed in self.state.source_samples.items():
            values[f"samples_of_{name}"] = consumed
            values[f"epochs_of_{name}"] = consumed / self.data.sources[name].num_samples
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

    def evaluate(self, source: str, held_out: HeldOut) -> Likelihood:
        """Measure the likelihood of the held-out data of a source."""
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
            self.monitor.scalars(self.state.step, values, group=f"validation_{source}" if source else "validation")
            of_source = f" of {source}" if source else ""
            self.monitor.progress.say(f"step {self.state.step}, held out{of_source}: {likelihood}")
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
