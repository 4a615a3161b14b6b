"""Samples of a model in training, to be looked at."""

from __future__ import annotations

import logging

import numpy as np
import torch

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config
from nar_scale.data import load_tokenizer
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import NumericalError
from nar_scale.evaluation import image_grid
from nar_scale.masking import Noise
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.fault_tolerance.interruption import interruptible, stopping_calls
from nar_scale.training.metrics.writer import MetricsWriter

_logger = logging.getLogger(__name__)


class SampleWriter(Callback):
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
        with run.metrics.timed("sampling_seconds"), interruptible(), stopping_calls(run.stop, net):
            _logger.debug("generating samples at step %d", run.state.step)
            try:
                tokens = generate_tokens(run.engine, run.config, run.state)
            except NumericalError as error:  # on every rank; whether the run goes on is decided by its losses
                if self._writer is not None:
                    _logger.warning("no samples at step %d: %s", run.state.step, error)
        if self._writer is None or tokens is None:
            return
        shape = run.config.logging.image_shape
        if shape is None:
            self._writer.texts(run.state.step, to_texts(tokens, run.state))
        else:
            self._writer.image(run.state.step, image_grid(np.array(tokens), shape, run.state.vocabulary_size))


def generate_tokens(engine: ZeroEngine, config: Config, state: TrainingState) -> list[list[int]]:
    """Generate `config.logging.samples` sequences of token ids from scratch, the same on every rank.

    A model that is conditional on a class is asked for each in turn. All ranks take part, since under ZeRO 3 each
    holds a part of the weights.
    """
    objective = engine.module
    numbers = torch.arange(config.logging.samples, device=objective.net.token_emb.weight.device)
    given = objective.start_from([], objective.max_seq_len, state.end_token)
    with engine.gathered():
        return objective.sample(
            numbers.new_tensor(given).expand(len(numbers), -1),
            DecodeManifest.of(config, objective.mask_id, state.end_token).decoding,
            Noise.of_requests(state.seed, numbers),
            classes=None if objective.num_classes is None else numbers % objective.num_classes,
        ).tokens


def to_texts(tokens: list[list[int]], state: TrainingState) -> list[str]:
    """Sequences of token ids as text, or as numbers where there is no tokenizer."""
    if state.tokenizer is None:
        return [" ".join(map(str, row)) for row in tokens]
    tokenizer = load_tokenizer(state.tokenizer, end_token=state.end_token)
    return [tokenizer.decode(row) for row in tokens]
