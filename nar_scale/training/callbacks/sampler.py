"""Samples of a model in training, for the reader's eye."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config
from nar_scale.data import load_tokenizer
from nar_scale.decoding import Sampler
from nar_scale.evaluation import image_grid
from nar_scale.masking import Noise
from nar_scale.objectives import NonAutoregressiveWrapper, Wrapper
from nar_scale.training.callbacks.interruption import abandoned_on_request, polled_calls
from nar_scale.training.engine.build import gathered
from nar_scale.training.metrics.throughput import timed
from nar_scale.training.metrics.writer import Monitor
from nar_scale.training.trainer import Trainer


class SampleWriter:
    """Generates a few sequences every `logging.sample_every` steps.

    Args:
        monitor: on the main process.
    """

    def __init__(self, monitor: Monitor | None):
        self.monitor = monitor

    def after_step(self, trainer: Trainer) -> None:
        """Generate if it is due, unless the run is asked to stop."""
        if trainer.stopping or not trainer.due(trainer.config.logging.sample_every):
            return
        trainer.phase.enter("sampling")
        state, wrapper = trainer.state, trainer.engine.module
        tokens = None
        timer, abandoned = timed(trainer.timings, "sampling_seconds"), abandoned_on_request(trainer)
        with timer, abandoned, polled_calls(trainer, wrapper.net):
            tokens = generate_tokens(wrapper, trainer.config, state)
        if self.monitor is None or tokens is None:
            return
        shape = trainer.config.logging.image_shape
        if shape is None:
            self.monitor.texts(state.step, to_texts(tokens, state))
        else:
            self.monitor.image(state.step, image_grid(tokens.cpu().numpy(), shape, state.vocabulary_size))

    def at_end(self, trainer: Trainer) -> None:
        """The last step has been sampled."""


def generate_tokens(wrapper: Wrapper, config: Config, state: TrainingState) -> Tensor:
    """Generate `config.logging.samples` sequences from scratch, the same on every rank; int64 `[samples, n]`.

    A model that is conditional on a class is asked for each in turn. All ranks take part, since under ZeRO 3 each
    holds a part of the weights.
    """
    count = config.logging.samples
    device = wrapper.net.token_emb.weight.device
    noise = Noise.of_requests(state.seed, torch.arange(count, device=device))
    with gathered(wrapper):
        if isinstance(wrapper, NonAutoregressiveWrapper):
            classes = None
            if wrapper.num_classes is not None:
                classes = torch.arange(count, device=device) % wrapper.num_classes
            scale = config.objective.guidance_scale
            # the surest pixels first would draw nearly the same picture again and again
            sampler: Sampler = "confidence" if config.logging.image_shape is None else "random"
            return cast(
                Tensor,
                wrapper.generate(batch_size=count, noise=noise, classes=classes, guidance_scale=scale, sampler=sampler),
            )
        start = torch.full((count, 1), state.end_token or 0, device=device)
        return wrapper.generate(start, wrapper.max_seq_len - 1, noise=noise, return_prompt=False)


def to_texts(tokens: Tensor, state: TrainingState) -> list[str]:
    """Sequences int64 `[samples, n]` as text, or as numbers where there is no tokenizer."""
    if state.tokenizer is None:
        return [" ".join(map(str, row)) for row in tokens.tolist()]
    tokenizer = load_tokenizer(state.tokenizer)
    return [tokenizer.decode(row) for row in tokens.tolist()]
