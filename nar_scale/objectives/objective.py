"""`Objective`: what the trainer, the evaluation, checkpoints and generation need of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from nar_scale.config import SamplerConfig
from nar_scale.data import Batch
from nar_scale.decoding import StepCallback
from nar_scale.masking import Noise
from nar_scale.model import WHOLE, SequenceParallelContext, TransformerWrapper
from nar_scale.objectives.terms import LossTerms


class Samples(NamedTuple):
    """What `Objective.sample` returns, a row for each sequence.

    Attributes:
        tokens: the token ids: the whole sequence of a model that fills in masks, and what follows the prompt, up to the
            end token, of a model that generates left to right.
        network_calls: the forward passes that each sequence took.
    """

    tokens: list[list[int]]
    network_calls: list[int]


def without_padding(tokens: Tensor, lengths: Tensor | None) -> list[list[int]]:
    """Rows of tokens, int64 `[batch, n]`, each of its own length, int64 `[batch]`; None for whole rows."""
    counts = [tokens.shape[1]] * len(tokens) if lengths is None else lengths.tolist()
    return [row[:count] for row, count in zip(tokens.tolist(), counts)]


class Objective(nn.Module, ABC):
    """A network with the loss that it is trained with and the way it generates: the base class of the wrappers.

    A wrapper has two faces. `forward` and `generate` are for people: token ids in, a loss or tokens out, with the
    arguments of x-transformers. `loss_terms`, `counts` and `sample` are for this library: they take batches of the
    training stream and of requests, and mean the same for every kind of model.

    Attributes:
        net: the network; all names of its weights begin with `net.`.
        max_seq_len: tokens of the longest sequence.
        mask_id: the token that stands for an unknown one, or None for a model that has none.
        num_classes: number of classes that the model is conditional on, or None.
        samples_padded: whether `sample` takes sequences of different lengths together.
        fills_gaps: whether `sample` fills in masks; otherwise it continues prompts.
        bound_term: which loss term is an upper bound on an exact first one, if any is.
        copies: how often each token of the data passes the network in training.
        sequence_parallel: this rank's part of every batch in training, where ranks share sequences.
    """

    net: TransformerWrapper
    max_seq_len: int
    mask_id: int | None = None
    num_classes: int | None = None
    samples_padded: bool = False
    fills_gaps: bool = False
    bound_term: int | None = None
    copies: int = 1
    sequence_parallel: SequenceParallelContext = WHOLE

    @property
    def conditional(self) -> bool:
        """Whether the model has a condition (a class or a prefix), without which there is no guidance."""
        return False

    @property
    @abstractmethod
    def term_names(self) -> tuple[str, ...]:
        """Names of the loss terms, in order."""

    @property
    @abstractmethod
    def likelihood_kind(self) -> str:
        """What the mean of the first loss term is in eval mode: `exact` or an upper `bound`."""

    @abstractmethod
    def counts(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """What each loss term of a batch is divided by, found without running the network; float32 `[terms]`.

        Args:
            batch: of the training stream.
            seed: of the masks.
        """

    @abstractmethod
    def loss_terms(self, batch: Batch, *, seed: int = 0) -> LossTerms:
        """The loss terms of a batch of the training stream; in training, of this rank's part of its sequences.

        Args:
            batch: of the training stream; its documents, classes and lengths are respected.
            seed: of the masks, which depend on it, the epoch and the sample ids alone.

        Raises:
            ValueError: classes or documents that do not fit the model (a RuntimeError from the device on GPUs, where
                checking at once would make every step wait).
        """

    def redirect_forward(self) -> None:
        """Let calls of this module return `loss_terms` from now on, for an engine that can only call its module.

        A DeepSpeed engine calls its module, and ZeRO 3 gathers the weights that a module holds itself in hooks on that
        call. A module around this one would rename all weights, and a plain call of `loss_terms` would pass the hooks
        by. Lightning redirects `forward` in the same way.
        """
        self.forward = self.loss_terms

    @abstractmethod
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate sequences with the arguments and results of x-transformers, which differ between the wrappers."""

    @abstractmethod
    def start_from(self, prompt: list[int], length: int, end_token: int | None) -> list[int]:
        """The tokens that `sample` needs to continue a prompt.

        Args:
            prompt: token ids; an empty list for a sample from scratch.
            length: tokens of the sequence, prompt included.
            end_token: ends a document; what follows it begins one.
        """

    @abstractmethod
    def sample(
        self,
        given: Tensor,
        decoding: SamplerConfig,
        noise: Noise,
        *,
        length: int | None = None,
        lengths: Tensor | None = None,
        classes: Tensor | None = None,
        end_token: int | None = None,
        callback: StepCallback | None = None,
    ) -> Samples:
        """Generate a batch of sequences, each the same in any batch.

        Args:
            given: int64 `[batch, n]`, made by `start_from` or by filling gaps with `mask_id`.
            decoding: how to sample; its stop texts are for those who know the tokenizer.
            noise: the source of all randomness, a stream for each sequence.
            length: tokens of a sequence with its prompt, of a model that generates left to right; None for the longest.
            lengths: int64 `[batch]`, true lengths of sequences that are padded on the right with any token; None where
                none is. A sequence comes out as without padding.
            classes: int64 `[batch]`, of a model with `num_classes`.
            end_token: ends a sequence of a model that generates left to right.
            callback: is called after each network call with the tokens, int64 `[batch, n]`, and the number of the call,
                from 1. Masked tokens are `mask_id`; of a model that generates left to right, the tokens are those that
                follow the prompts.

        Raises:
            ConfigError: a sampler or a setting that is not for this kind of model.
            ValueError: sequences that are too long, `lengths` for a model without `samples_padded`, or a class that the
                model does not have.
        """

    @abstractmethod
    def probe_tokens(self, bits: Tensor) -> Tensor:
        """Token ids for a recorded forward pass, int64 `[n]`, from as many random integers, int64."""

    @abstractmethod
    def run_probe(self, tokens: Tensor) -> dict[str, Tensor]:
        """Everything that the network makes of tokens, int64 `[1, n]`: at least `logits` `[1, n, num_tokens]`."""


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """A `with` block in which modules are in eval mode; each is in its former mode afterwards."""
    were_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, was_training in zip(modules, were_training):
            module.train(was_training)
