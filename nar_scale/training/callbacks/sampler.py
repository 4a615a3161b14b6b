"""Samples of a model in training, to be looked at."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config
from nar_scale.data import load_tokenizer
from nar_scale.decoding import Sampler as SamplerName
from nar_scale.evaluation import image_grid
from nar_scale.masking import Noise
from nar_scale.objectives import NonAutoregressiveWrapper
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.callbacks.interruption import interruptible, stopping_calls
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.metrics.writer import MetricsWriter


class Sampler(Callback):
    """Generates a few sequences every `logging.sample_every` steps.

    Args:
        writer: on the main process.
    """

    def __init__(self, writer: MetricsWriter | None):
        self._writer = writer

    def on_step_end(self, run: RunView) -> None:
        """Generate if it is due, unless the run is to stop."""
        if run.stop.agreed or not run.due(run.config.logging.sample_every):
            return
        run.activity.enter("sampling")
        tokens = None
        net = run.engine.module.net
        with run.metrics.timed("sampling_seconds"), interruptible(run.engine), stopping_calls(run.stop, net):
            tokens = generate_tokens(run.engine, run.config, run.state)
        if self._writer is None or tokens is None:
            return
        shape = run.config.logging.image_shape
        if shape is None:
            self._writer.texts(run.state.step, to_texts(tokens, run.state))
        else:
            self._writer.image(run.state.step, image_grid(tokens.cpu().numpy(), shape, run.state.vocabulary_size))


def generate_tokens(engine: ZeroEngine, config: Config, state: TrainingState) -> Tensor:
    """Generate `config.logging.samples` sequences from scratch, the same on every rank; int64 `[samples, n]`.

    A model that is conditional on a class is asked for each in turn. All ranks take part, since under ZeRO 3 each
    holds a part of the weights.
    """
    count, wrapper = config.logging.samples, engine.module
    device = wrapper.net.token_emb.weight.device
    noise = Noise.of_requests(state.seed, torch.arange(count, device=device))
    with engine.gathered():
        if isinstance(wrapper, NonAutoregressiveWrapper):
            classes = None
            if wrapper.num_classes is not None:
                classes = torch.arange(count, device=device) % wrapper.num_classes
            scale = config.objective.guidance_scale
            # the surest pixels first would draw nearly the same picture again and again
            sampler: SamplerName = "confidence" if config.logging.image_shape is None else "random"
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
