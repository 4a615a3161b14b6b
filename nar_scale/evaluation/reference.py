"""Reference models: what generated text is scored with (generative perplexity)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.data import Batch, Tokenizer
from nar_scale.errors import DataError, UserError
from nar_scale.evaluation.likelihood import Likelihood, evaluate_likelihood, ratio_error
from nar_scale.evaluation.reencoding import padded_batch
from nar_scale.objectives import Objective, evaluating

_NO_ANSWER = -100


class Reference(ABC):
    """A language model with a tokenizer of its own that scores text.

    Attributes:
        name: of the model, for reports.
        end_token: its id that ends a document.
    """

    name: str
    end_token: int
    _batch_size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without an end token."""

    @abstractmethod
    def _last_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The last layer's output at the last token of each sequence, float32 `[batch, dim]`."""

    @abstractmethod
    def _likelihood(self, windows: Sequence[Sequence[int]]) -> Likelihood:
        """The likelihood of token sequences that fit the model."""

    @property
    @abstractmethod
    def _window(self) -> int:
        """Tokens of the longest sequence."""

    @property
    @abstractmethod
    def _left_to_right(self) -> bool:
        """Whether the first token of a sequence is not predicted."""

    def join(self, documents: Sequence[str]) -> list[int]:
        """The token ids of documents with an end token between each two."""
        ids: list[int] = []
        for number, document in enumerate(documents):
            ids += [self.end_token] * (number > 0)
            ids += self.encode(document)
        return ids

    def likelihood(self, sequences: Sequence[Sequence[int]]) -> Likelihood:
        """The likelihood of token sequences, each as the beginning of a document.

        A sequence longer than the model's is cut into windows, which do not see each other and are taken for
        independent in the standard error.

        Args:
            sequences: token ids, as `join` returns them; empty ones do not count.

        Raises:
            DataError: there is no token.
        """
        windows = [window for sequence in sequences if len(sequence) for window in self._windows(list(sequence))]
        if not windows:
            raise DataError("the samples hold no text that could be scored")
        return self._likelihood(windows)

    def features(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """What a left-to-right model makes of each sequence: the last layer's output at its last token.

        Args:
            sequences: token ids, as `join` returns them; of each the last window counts.

        Returns:
            float32 `[sequences, dim]`.

        Raises:
            UserError: the model does not read left to right.
        """
        if not self._left_to_right:
            raise UserError(f"MAUVE needs a reference model that reads left to right, which {self.name} does not")
        windows = [list(self._windows(list(sequence)))[-1] if sequence else [self.end_token] for sequence in sequences]
        parts = [windows[start : start + self._batch_size] for start in range(0, len(windows), self._batch_size)]
        with torch.no_grad():
            return np.concatenate([self._last_states(part).cpu().numpy() for part in parts])

    def _windows(self, tokens: list[int]) -> Iterator[list[int]]:
        # left to right, the last token of a window is the first of the next one, which is not predicted there
        overlap = int(self._left_to_right)
        tokens = [self.end_token] * overlap + tokens
        for start in range(0, len(tokens) - overlap, self._window - overlap):
            yield tokens[start : start + self._window]


class CheckpointReference(Reference):
    """A model of this library.

    Args:
        objective: the model; with an upper bound for a likelihood, perplexities are upper bounds too.
        tokenizer: of the model.
        name: for reports.
        batch_size: sequences in a forward pass.

    Raises:
        UserError: the model is conditional on a class.
    """

    def __init__(self, objective: Objective, tokenizer: Tokenizer, name: str, batch_size: int = 16):
        if objective.num_classes is not None:
            raise UserError(f"{name} is conditional on a class; give another reference model")
        self.name, self.end_token = name, tokenizer.end_token
        self._objective, self._tokenizer, self._batch_size = objective, tokenizer, batch_size

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without an end token."""
        ids: list[int] = self._tokenizer.encode(text.encode()).tolist()
        return ids

    @property
    def _window(self) -> int:
        return self._objective.max_seq_len

    @property
    def _left_to_right(self) -> bool:
        return self._objective.net.causal

    def _last_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        net = self._objective.net
        batch = padded_batch(rows, max(map(len, rows))).to(net.token_emb.weight.device)
        with evaluating(self._objective):
            states = net(batch.tokens, return_embeddings=True)
        return _at_last(states, batch)

    def _likelihood(self, windows: Sequence[Sequence[int]]) -> Likelihood:
        batches = (
            padded_batch(windows[start : start + self._batch_size], self._window, start)
            for start in range(0, len(windows), self._batch_size)
        )
        return evaluate_likelihood(self._objective, batches, self._objective.net.token_emb.weight.device)


class TransformersReference(Reference):
    """A left-to-right model in a directory of the Hugging Face layout, read by transformers.

    Args:
        directory: with `config.json`, safetensors weights and a tokenizer.
        device: of the model.
        batch_size: sequences in a forward pass.

    Raises:
        UserError: the optional package `transformers` is not installed, the directory cannot be read, or its tokenizer
            has no end token.
    """

    def __init__(self, directory: str | Path, device: torch.device | str = "cpu", batch_size: int = 16):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise UserError(
                f"the reference model {directory} needs an optional package ({error.name}): "
                "pip install 'nar_scale[transformers]'"
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the reference model {directory} cannot be read by transformers: {reason}") from error
        if self._tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of {directory} has no end token; name one in its tokenizer_config.json")
        self._model = model.float().eval().to(device)
        self.name, self.end_token = str(directory), int(self._tokenizer.eos_token_id)
        self._device, self._batch_size = device, batch_size

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without an end token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    @property
    def _window(self) -> int:
        return int(self._model.config.max_position_embeddings)

    @property
    def _left_to_right(self) -> bool:
        return True

    def _last_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        batch = padded_batch(rows, max(map(len, rows))).to(self._device)
        return _at_last(self._model(batch.tokens, output_hidden_states=True).hidden_states[-1], batch)

    @torch.no_grad()
    def _likelihood(self, windows: Sequence[Sequence[int]]) -> Likelihood:
        sums = torch.zeros(5, dtype=torch.float64)
        for start in range(0, len(windows), self._batch_size):
            rows = windows[start : start + self._batch_size]
            batch = padded_batch(rows, max(map(len, rows)))
            answers = batch.tokens[:, 1:].clone()
            answers[torch.arange(1, batch.tokens.shape[1]) >= batch.lengths[:, None]] = _NO_ANSWER
            logits = self._model(batch.tokens[:, :-1].to(self._device)).logits.float()  # padding comes after all text
            losses = F.cross_entropy(logits.transpose(1, 2).cpu(), answers, reduction="none").double().sum(dim=1)
            counts = (answers != _NO_ANSWER).double().sum(dim=1)
            parts = (losses, counts, losses * losses, losses * counts, counts * counts)
            sums += torch.stack([part.sum() for part in parts])
        total, tokens, *moments = sums.tolist()
        error = ratio_error(total, tokens, moments)
        return Likelihood(total / tokens, error, int(tokens), len(windows), "exact", None, "exact NLL, left to right")


def _at_last(states: Tensor, batch: Batch) -> Tensor:
    """States `[batch, n, dim]` at the last token of each row, float32 `[batch, dim]`."""
    return states[torch.arange(len(states), device=states.device), batch.lengths - 1].float()
