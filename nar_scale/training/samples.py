"""Samples of a model in training, for the reader's eye."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config
from nar_scale.data import load_tokenizer
from nar_scale.masking import Noise
from nar_scale.objectives import NonAutoregressiveWrapper, Wrapper
from nar_scale.training.engine import gathered


def generate_texts(wrapper: Wrapper, config: Config, state: TrainingState) -> list[str]:
    """Generate `config.logging.samples` sequences from scratch, the same on every rank.

    All ranks take part, since under ZeRO 3 each holds a part of the weights.
    """
    count = config.logging.samples
    device = wrapper.net.token_emb.weight.device
    noise = Noise.of_requests(state.seed, torch.arange(count, device=device))
    with gathered(wrapper):
        if isinstance(wrapper, NonAutoregressiveWrapper):
            tokens = cast(Tensor, wrapper.generate(batch_size=count, noise=noise))
        else:
            start = torch.full((count, 1), state.end_token or 0, device=device)
            tokens = wrapper.generate(start, wrapper.max_seq_len - 1, noise=noise, return_prompt=False)
    if state.tokenizer is None:
        return [" ".join(map(str, row)) for row in tokens.tolist()]
    tokenizer = load_tokenizer(state.tokenizer)
    return [tokenizer.decode(row) for row in tokens.tolist()]
