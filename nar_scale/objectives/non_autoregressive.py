"""`NonAutoregressiveWrapper`: masked prediction in training, iterative unmasking in generation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.data import Batch
from nar_scale.errors import ConfigError
from nar_scale.masking import (
    MaskedBatch,
    Masking,
    Noise,
    Schedule,
    choose_masked,
    get_schedule,
    mask_tokens,
    masked_counts,
)
from nar_scale.model import WHOLE, SequenceParallelContext, TransformerWrapper
from nar_scale.objectives.denoising import Unmasker, critic_loss, draw_answers
from nar_scale.objectives.documents import check_documents
from nar_scale.objectives.predicted import PredictedTokens, losses_by_masked_fraction, slots_for
from nar_scale.objectives.terms import Losses, LossTerms, length_mask, on_device, require, sequence_moments

# streams of one sequence's noise; `mask_tokens` derives its own below the first
MASK, _SELF_CONDITION, _CRITIC, _DROP_CONDITION = range(100, 104)


class NonAutoregressiveWrapper(Unmasker):
    """Trains an `Encoder` to predict masked tokens and generates by unmasking step by step.

    Mask-Predict (arXiv:1904.09324) and MaskGIT (arXiv:2202.04200); with the MDLM weight (arXiv:2406.07524)
    the loss is an upper bound on the negative log-likelihood in nats per token, as it always is in eval mode.

    Args:
        net: a `TransformerWrapper` around an `Encoder`.
        mask_id: the token that stands for an unknown one; it is never predicted.
        steps: network calls in `generate`.
        self_cond: condition each pass on the embeddings of the previous one (arXiv:2208.04202).
        self_cond_train_prob: fraction of the sequences trained with it.
        no_replace_prob: fraction of masked tokens left in place, in half of the sequences (BERT, arXiv:1810.04805).
        random_token_prob: fraction of masked tokens replaced by random ones, in half of the sequences (BERT).
            With either, the training loss is not a bound; in eval mode both are off.
        schedule: `linear`, `cosine`, `uniform_count`, `bell` or a callable m(t), the masked fraction at progress t.
        training_schedule: the same for training alone; `schedule` if not given.
        can_mask_prev_unmasked: whether decoding may mask tokens again that it has revealed.
        token_critic: a `TransformerWrapper` with `logits_dim=1` that finds wrong tokens in decoding (arXiv:2209.04439).
        self_token_critic: use the network itself as the critic.
        critic_loss_weight: weight of the critic's loss.
        use_simple_mdlm_loss_weight: weigh the training loss into the bound; otherwise it is MaskGIT's unweighted mean.
        masking: `exact` masks ceil(m(t) n) of n tokens, `bernoulli` each with probability m(t), given that one is.
        num_classes: condition on a class, whose embedding is added to that of every token.
        prefix_length: first tokens of each sequence that are given: never masked, predicted or counted.
        condition_drop_prob: fraction of the sequences trained without class and prefix, for classifier-free guidance
            (arXiv:2207.12598).

    Raises:
        ConfigError: arguments that contradict each other.
    """

    samples_padded = True

    def __init__(
        self,
        net: TransformerWrapper,
        *,
        mask_id: int,
        steps: int = 18,
        self_cond: bool = False,
        self_cond_train_prob: float = 0.75,
        no_replace_prob: float = 0.15,
        random_token_prob: float = 0.1,
        schedule: str | Callable[[Tensor], Tensor] = "linear",
        training_schedule: str | Callable[[Tensor], Tensor] | None = None,
        can_mask_prev_unmasked: bool = False,
        token_critic: TransformerWrapper | None = None,
        self_token_critic: bool = False,
        critic_loss_weight: float = 1.0,
        use_simple_mdlm_loss_weight: bool = True,
        masking: Masking = "exact",
        num_classes: int | None = None,
        prefix_length: int = 0,
        condition_drop_prob: float = 0.0,
    ):
        super().__init__(net, mask_id, self_cond, token_critic, self_token_critic, num_classes, prefix_length)
        if condition_drop_prob > 0 and not self.conditional:
            raise ConfigError("condition_drop_prob needs a condition to drop: num_classes or prefix_length")
        if masking not in get_args(Masking):
            raise ConfigError(f"unknown masking {masking!r}; use {' or '.join(get_args(Masking))}")
        self.schedule = get_schedule(schedule)
        self.training_schedule = self.schedule if training_schedule is None else get_schedule(training_schedule)
        if masking == "bernoulli":
            for each in (self.schedule, self.training_schedule):
                each.continuous_loss_weight(torch.tensor(0.5, device="cpu"))  # refuses what has no derivative
        self.masking: Masking = masking
        self.use_simple_mdlm_loss_weight = use_simple_mdlm_loss_weight
        self.no_replace_prob, self.random_token_prob = no_replace_prob, random_token_prob
        self.self_cond_train_prob, self.condition_drop_prob = self_cond_train_prob, condition_drop_prob
        self.critic_loss_weight = critic_loss_weight
        self.steps, self.can_mask_prev_unmasked = steps, can_mask_prev_unmasked

    @property
    def term_names(self) -> tuple[str, ...]:
        """`generator_loss`, and with a token critic `critic_loss`."""
        return ("generator_loss", "critic_loss") if self.token_critic is not None else ("generator_loss",)

    @property
    def likelihood_kind(self) -> str:
        """`bound`: in eval mode the loss is weighted and nothing is corrupted, whatever the training loss is."""
        return "bound"

    @property
    def _weighted(self) -> bool:
        return self.use_simple_mdlm_loss_weight or not self.training

    @property
    def _masking_schedule(self) -> Schedule:
        return self.training_schedule if self.training else self.schedule

    def counts(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """The number of maskable (without weights: masked) tokens and of the critic's; see `Objective`."""
        present = length_mask(batch.lengths, batch.tokens.shape[1])
        maskable = self._maskable(present, None)
        generator = maskable.sum()
        if not self._weighted:
            generator = self._masked_counts(maskable, self._noise(batch, seed).derive(MASK)).sum()
        return torch.stack((generator, present.sum())[: len(self.term_names)]).float()

    def loss_terms(self, batch: Batch, *, seed: int = 0) -> LossTerms:
        """The loss terms of a batch of the training stream; see `Objective`."""
        sequence_parallel = self.sequence_parallel if self.training else WHOLE
        return self._loss_terms(
            batch.tokens,
            self._noise(batch, seed),
            batch.lengths if batch.padded else None,
            classes=batch.classes,
            documents=batch.documents,
            sequence_parallel=sequence_parallel,
            slots=self._slots(batch, sequence_parallel, seed),
        )

    def forward(
        self,
        x: Tensor,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        *,
        frozen: Tensor | None = None,
        lens: Tensor | None = None,
        classes: Tensor | None = None,
        documents: Tensor | None = None,
        **net_kwargs: Any,
    ) -> Losses:
        """Mask tokens, predict them, and compare; the masks come from torch's default generator.

        Args:
            x: token ids, int64 `[batch, max_seq_len]`.
            only_train_generator: leave the critic out.
            only_train_critic: leave the generator as it is.
            generator_sample_temperature: of the tokens that the critic sees; if None, each sequence has one of its own,
                uniform in (0, 1).
            frozen: bool `[batch, n]`, true for tokens that are given and never masked.
            lens: int64 `[batch]`, true lengths of padded sequences.
            classes: int64 `[batch]`, with `num_classes`.
            documents: int64 `[batch, n]`, the number of the document that each token belongs to, never falling from
                left to right; None for one document. The documents of a sample do not see each other.
            net_kwargs: further arguments of the network, such as `context` or `prepend_embeds`.

        Raises:
            ValueError: a sequence of the wrong length; one that contains the mask id or has a class that does not exist
                (a RuntimeError from the device on GPUs, where checking at once would make every step wait);
                `only_train_critic` without a critic; classes that are missing or not expected; documents that do not
                fit the tokens, or with `prefix_length` or `prepend_embeds`.
        """
        if x.shape[1] != self.max_seq_len:
            raise ValueError(f"sequences have {x.shape[1]} tokens, but max_seq_len is {self.max_seq_len}")
        require((x != self.mask_id).all(), f"the data contains the mask id {self.mask_id}")
        if documents is not None:
            check_documents(documents, x, lens)
        if only_train_critic and self.token_critic is None:
            raise ValueError("only_train_critic, but there is no token_critic and no self_token_critic")
        if only_train_critic and only_train_generator:
            raise ValueError("only_train_generator and only_train_critic exclude each other; choose one")
        terms = self._loss_terms(
            x,
            Noise.draw(len(x), x.device),
            lens,
            frozen=frozen,
            classes=classes,
            documents=documents,
            critic_temperature=generator_sample_temperature,
            only_train_generator=only_train_generator,
            only_train_critic=only_train_critic,
            **net_kwargs,
        )
        means = terms.sums / terms.counts.clamp(min=1)
        generator_loss = None if only_train_critic else means[0]
        critic_loss = means[1] if len(means) == 2 else None
        total = critic_loss if only_train_critic and critic_loss is not None else terms.total()
        return Losses(total, generator_loss, critic_loss)

    def _noise(self, batch: Batch, seed: int) -> Noise:
        return Noise.of_samples(seed, batch.epochs, batch.sample_ids, batch.positions)

    def _slots(self, batch: Batch, sequence_parallel: SequenceParallelContext, seed: int) -> int | None:
        """Slots for the masked tokens of a batch on a GPU, counted in its copy on the host; None if it has none."""
        host = batch.on_host
        if host is None:
            return None
        maskable = self._maskable(length_mask(host.lengths, host.tokens.shape[1]), None)
        noise = self._noise(host, seed).derive(MASK)
        if sequence_parallel.size == 1:
            return slots_for(self._masked_counts(maskable, noise).sum(), host.tokens.numel())
        mine = sequence_parallel.shard(self._choose_masked(maskable, noise).view_as(host.tokens))
        return slots_for(mine.sum(), mine.numel())

    def _maskable(self, present: Tensor, frozen: Tensor | None) -> Tensor:
        maskable = present if frozen is None else present & ~frozen
        if self.prefix_length:
            maskable = maskable & (torch.arange(present.shape[1], device=present.device) >= self.prefix_length)
        return maskable

    def _masked_counts(self, maskable: Tensor, noise: Noise) -> Tensor:
        """How many tokens `_mask_tokens` masks in each of its rows."""
        return masked_counts(maskable, noise, self._masking_schedule, self.masking)

    def _choose_masked(self, maskable: Tensor, noise: Noise) -> Tensor:
        return choose_masked(maskable, noise, self._masking_schedule, self.masking)[0]

    def _mask_tokens(self, tokens: Tensor, maskable: Tensor, noise: Noise) -> MaskedBatch:
        """Mask tokens, int64 `[batch, n]`; a row of the result is a sequence, or one of several equal parts of it."""
        return mask_tokens(
            tokens,
            maskable,
            noise,
            self._masking_schedule,
            self.mask_id,
            self.net.num_tokens,
            self.no_replace_prob if self.training else 0.0,
            self.random_token_prob if self.training else 0.0,
            self.masking,
        )

    def _loss_terms(
        self,
        tokens: Tensor,
        noise: Noise,
        lengths: Tensor | None,
        *,
        frozen: Tensor | None = None,
        classes: Tensor | None = None,
        documents: Tensor | None = None,
        critic_temperature: float | None = None,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        sequence_parallel: SequenceParallelContext = WHOLE,
        slots: int | None = None,
        **net_kwargs: Any,
    ) -> LossTerms:
        self.check_classes(classes, len(tokens))
        net_kwargs["sequence_parallel"] = sequence_parallel
        if documents is not None:
            net_kwargs = self._within(documents, net_kwargs)
        present = torch.ones_like(tokens, dtype=torch.bool)
        if lengths is not None:
            present = length_mask(lengths, tokens.shape[1])
            prepended = net_kwargs.get("prepend_embeds")
            prefix = 0 if prepended is None else prepended.shape[1]
            seen, asked = F.pad(present, (prefix, 0), value=True), net_kwargs.get("mask")
            net_kwargs["mask"] = seen if asked is None else seen & asked
        maskable = self._maskable(present, frozen)
        masked = self._mask_tokens(tokens, maskable, noise.derive(MASK))
        visible, true = masked.tokens.view_as(tokens), tokens
        if self.training and self.condition_drop_prob > 0:
            dropped = noise.derive(_DROP_CONDITION).uniform() < self.condition_drop_prob
            visible, true = (self.without_prefix(each, dropped) for each in (visible, true))
            classes = self.without_class(classes, dropped)
        with torch.no_grad() if only_train_critic else nullcontext():
            embeddings = self._embed(visible, true, noise.derive(_SELF_CONDITION), classes, net_kwargs)
            # masks are of whole sequences, the same on all that share them; from here on each looks after its part
            predicted = PredictedTokens.of(masked.mask.view_as(tokens), sequence_parallel, slots)
            hidden = predicted.select_local(embeddings)
            losses = self.net.to_logits(hidden, self._cross_entropy, predicted.answers(tokens))
            weighted = losses * self._loss_weights(masked, predicted)
        counted = maskable if self._weighted else masked.mask.view_as(tokens)
        row_counts = sequence_parallel.shard(counted).sum(dim=1)
        terms = [(weighted.sum(), row_counts.sum().float())]
        weights = [0.0 if only_train_critic else 1.0]
        if self.token_critic is not None and not only_train_generator:
            critic_noise = noise.derive(_CRITIC)
            answers = draw_answers(self.net, hidden.detach(), predicted, self.mask_id, critic_noise, critic_temperature)
            generated = predicted.replace_in(true, answers)
            judged = self.critic_logits(generated, classes, **net_kwargs)
            generated, true, present = (sequence_parallel.shard(each) for each in (generated, true, present))
            terms.append((critic_loss(judged, generated, true, present), present.sum().float()))
            weights.append(self.critic_loss_weight)
        sums, counts = (torch.stack(column) for column in zip(*terms))
        moments = sequence_moments(weighted, predicted.rows(len(tokens)), row_counts)
        metrics = losses_by_masked_fraction(losses, masked, predicted)
        return LossTerms(sums, counts, on_device(weights, sums), metrics, moments)

    def _embed(
        self, visible: Tensor, tokens: Tensor, noise: Noise, classes: Tensor | None, net_kwargs: dict[str, Any]
    ) -> Tensor:
        """Embeddings `[batch, n, dim]` of this rank's part of the masked sequences `visible`; the truth is `tokens`."""
        if not self.self_cond:
            return self.embed(visible, None, classes, **net_kwargs)
        with torch.no_grad():
            previous = self.embed(visible, None, classes, **net_kwargs)
        conditioned = noise.uniform() < self.self_cond_train_prob
        previous = torch.where(conditioned[:, None, None], previous, self.null_embed.expand_as(previous))
        return self.embed(visible, previous, classes, **net_kwargs)

    def _cross_entropy(self, logits: Tensor, answers: Tensor) -> Tensor:
        """In nats, float32 `[tokens]`; the mask is never an answer."""
        logits = logits.float()
        logits[:, self.mask_id] = -torch.inf
        return F.cross_entropy(logits, answers, reduction="none")

    def _loss_weights(self, masked: MaskedBatch, predicted: PredictedTokens) -> Tensor:
        """What the cross-entropy of each masked token weighs, float32 `[slots]`; 0 in empty slots."""
        return predicted.spread(masked.weights.float()) if self._weighted else predicted.filled.float()
