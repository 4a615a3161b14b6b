"""`NonAutoregressiveWrapper`: masked prediction in training, iterative demasking in generation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_scale.data import Batch
from nar_scale.decoding import Demasked, Sampler, demask
from nar_scale.errors import ConfigError
from nar_scale.masking import MaskedBatch, Masking, Noise, get_schedule, mask_tokens, masked_counts
from nar_scale.model import TransformerWrapper
from nar_scale.model.layers import Embedding, Linear
from nar_scale.objectives.critic import SelfCritic, critic_loss, draw_answers
from nar_scale.objectives.terms import LossTerms, length_mask, on_device, sequence_moments

# streams of one sequence's noise; `mask_tokens` derives its own below the first
_MASK, _SELF_CONDITION, _CRITIC, _DROP_CONDITION = range(100, 104)
MASK_FRACTION_BINS = 5


class Losses(NamedTuple):
    """What a forward pass returns: scalars, None where a part is not trained."""

    loss: Tensor
    generator_loss: Tensor | None
    critic_loss: Tensor | None


class NonAutoregressiveWrapper(nn.Module):
    """Trains an `Encoder` to predict masked tokens and generates by demasking step by step.

    Mask-Predict (arXiv:1904.09324) and MaskGIT (arXiv:2202.04200); with the MDLM weight (arXiv:2406.07524)
    the loss is an upper bound on the negative log-likelihood in nats per token.

    Args:
        net: a `TransformerWrapper` around an `Encoder`.
        mask_id: the token that hides; its probability as an answer is 0.
        steps: network calls in `generate`.
        self_cond: condition each pass on the embeddings of the one before (arXiv:2208.04202).
        self_cond_train_prob: fraction of the sequences trained with it.
        no_replace_prob: fraction of masked tokens left in place, in half of the sequences (BERT).
        random_token_prob: fraction of masked tokens replaced by random ones, in half of the sequences (BERT).
            With either, the training loss is not a bound; in eval mode both are off.
        schedule: `linear`, `cosine`, `uniform_count` or a callable m(t), the masked fraction.
        can_mask_prev_unmasked: whether decoding may mask again what it has revealed.
        token_critic: a `TransformerWrapper` with `logits_dim=1` that judges tokens in decoding.
        self_token_critic: use the net itself as the critic.
        critic_loss_weight: weight of the critic's loss.
        use_simple_mdlm_loss_weight: weigh the loss into the bound; otherwise MaskGIT's unweighted mean.
        masking: `exact` masks ceil(m(t) n) tokens, `bernoulli` each with probability m(t), given that one is.
        num_classes: condition on a class, whose embedding is added to every token's.
        prefix_length: first tokens of each sequence that are given: never masked, predicted or counted.
        condition_drop_prob: fraction of the sequences trained without class and prefix, for classifier-free guidance
            (arXiv:2207.12598).

    Raises:
        ConfigError: arguments that contradict each other.
    """

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
        super().__init__()
        if net.causal:
            raise ConfigError("NonAutoregressiveWrapper needs an Encoder; a Decoder cannot see what follows a mask")
        if not 0 <= mask_id < net.num_tokens:
            raise ConfigError(f"mask_id {mask_id} is outside the vocabulary of {net.num_tokens} tokens")
        if self_token_critic and token_critic is not None:
            raise ConfigError("token_critic and self_token_critic exclude each other; choose one")
        if not 0 <= prefix_length < net.max_seq_len:
            raise ConfigError(f"prefix_length must be at least 0 and below max_seq_len, not {prefix_length}")
        if condition_drop_prob > 0 and num_classes is None and not prefix_length:
            raise ConfigError("condition_drop_prob needs a condition to drop: num_classes or prefix_length")
        self.net = net
        self.mask_id, self.steps, self.max_seq_len = mask_id, steps, net.max_seq_len
        self.no_replace_prob, self.random_token_prob = no_replace_prob, random_token_prob
        self.schedule = get_schedule(schedule)
        self.can_mask_prev_unmasked = can_mask_prev_unmasked
        self.use_simple_mdlm_loss_weight = use_simple_mdlm_loss_weight
        self.self_cond, self.self_cond_train_prob = self_cond, self_cond_train_prob
        if self_cond:
            self.null_embed = nn.Parameter(torch.randn(net.emb_dim))
            self.to_self_cond = Linear(net.emb_dim, net.emb_dim)
        self.token_critic: nn.Module | None = SelfCritic(net) if self_token_critic else token_critic
        self.critic_loss_weight = critic_loss_weight
        self.masking: Masking = masking
        self.num_classes, self.prefix_length = num_classes, prefix_length
        self.condition_drop_prob = condition_drop_prob
        # the last row stands for no class
        self.class_emb = Embedding(num_classes + 1, net.emb_dim) if num_classes is not None else None
        self.blocks = 1  # parts that are masked each on its own (`BlockDiffusionWrapper`)

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the loss terms, in order."""
        return ("generator_loss", "critic_loss") if self.token_critic is not None else ("generator_loss",)

    @property
    def likelihood_kind(self) -> str:
        """What the generator's loss is in eval mode."""
        return "bound" if self.use_simple_mdlm_loss_weight else "not a likelihood"

    def counts(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """What each loss term is divided by, float32 `[terms]`, without running the net."""
        present = length_mask(batch.lengths, batch.tokens.shape[1])
        maskable = self._maskable(present, None)
        generator = maskable.sum()
        if not self.use_simple_mdlm_loss_weight:
            noise = self._noise(batch, seed).derive(_MASK).split(self.blocks)
            generator = masked_counts(self._by_block(maskable), noise, self.schedule, self.masking).sum()
        return torch.stack((generator, present.sum())[: len(self.term_names)]).float()

    def forward(
        self,
        x: Tensor | Batch,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        *,
        frozen: Tensor | None = None,
        lens: Tensor | None = None,
        classes: Tensor | None = None,
        seed: int = 0,
        **net_kwargs: Any,
    ) -> Losses | LossTerms:
        """Mask, predict, and compare.

        Args:
            x: token ids int64 `[batch, max_seq_len]`, or a `Batch` of the training stream.
            only_train_generator: leave the critic out.
            only_train_critic: leave the generator as it is.
            generator_sample_temperature: of the tokens that the critic judges; drawn anew for each sequence
                if not given.
            frozen: bool `[batch, n]`, true where tokens are given and never masked.
            lens: int64 `[batch]`, true lengths of padded sequences.
            classes: int64 `[batch]`, with `num_classes`.
            seed: of the masks, with a `Batch`; a tensor's masks come from torch's default generator.
            net_kwargs: passed to the net, such as `context`, `documents` or `prepend_embeds`.

        Returns:
            `Losses` in nats per token for a tensor, `LossTerms` for a `Batch`.

        Raises:
            ValueError: a sequence of the wrong length; one that contains the mask id or has a class that is none (a
                RuntimeError from the device on GPUs, where checking at once would make every step wait); a critic that
                is not there; classes that are missing or not expected.
        """
        if isinstance(x, Batch):
            lengths = x.lengths if x.padded else None
            return self._loss_terms(x.tokens, self._noise(x, seed), lengths, classes=x.classes)
        if x.shape[1] != self.max_seq_len:
            raise ValueError(f"sequences have {x.shape[1]} tokens, but max_seq_len is {self.max_seq_len}")
        if only_train_critic and self.token_critic is None:
            raise ValueError("only_train_critic, but there is no token_critic and no self_token_critic")
        if only_train_critic and only_train_generator:
            raise ValueError("only_train_generator and only_train_critic exclude each other; choose one")
        _require((x != self.mask_id).all(), f"the data contains the mask id {self.mask_id}")
        terms = self._loss_terms(
            x,
            Noise.draw(len(x), x.device),
            lens,
            frozen=frozen,
            classes=classes,
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

    @torch.no_grad()
    def generate(
        self,
        batch_size: int | None = None,
        start_temperature: float = 1.0,
        filter_thres: float = 0.7,
        noise_level_scale: float = 1.0,
        *,
        prompt: Tensor | None = None,
        sampler: Sampler = "confidence",
        steps: int | None = None,
        noise: Noise | None = None,
        classes: Tensor | None = None,
        guidance_scale: float = 1.0,
        return_network_calls: bool = False,
        **net_kwargs: Any,
    ) -> Tensor | Demasked:
        """Fill in masks, all of a sequence or those of `prompt`.

        Args:
            batch_size: number of sequences; None for one, without batch dimension.
            start_temperature: of the sampling, falling linearly to 0.
            filter_thres: keeps the likeliest `ceil((1 - filter_thres) * num_tokens)` tokens.
            noise_level_scale: scale of the Gumbel noise on a critic's judgement.
            prompt: int64 `[batch, n]` or `[n]` with `mask_id` where tokens are wanted; the others stay.
            sampler: `confidence` or `random`, see `nar_scale.decoding.demask`.
            steps: network calls, instead of the wrapper's.
            noise: all randomness; from torch's default generator if not given.
            classes: int64 `[batch]`, with `num_classes`.
            guidance_scale: how far logits go from the unconditional ones in the direction of the conditional ones:
                1 for the conditional, 0 for the unconditional (arXiv:2207.12598, with scale 1 + w). Each network call
                then has twice the sequences.
            return_network_calls: return `Demasked`.
            net_kwargs: passed to the net.

        Returns:
            int64 `[batch_size, max_seq_len]` or, for one sequence, `[max_seq_len]`; never a mask token.

        Raises:
            ValueError: a prompt longer than `max_seq_len`; classes that are missing, not expected or unknown; guidance
                without a condition.
        """
        device = self.net.token_emb.weight.device
        single = batch_size is None if prompt is None else prompt.ndim == 1
        if prompt is None:
            prompt = torch.full((batch_size or 1, self.max_seq_len), self.mask_id, device=device)
        tokens = prompt.to(device).view(-1, prompt.shape[-1])
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(f"the prompt has {tokens.shape[1]} tokens, but max_seq_len is {self.max_seq_len}")
        if guidance_scale != 1 and self.num_classes is None and not self.prefix_length:
            raise ValueError("guidance_scale needs a condition: num_classes or prefix_length")
        if classes is not None:
            self._check_classes(classes.view(-1).cpu(), len(tokens))
            classes = classes.to(device).view(-1)
        noise = noise or Noise.draw(len(tokens), device)

        was_training = self.training
        self.eval()
        try:
            result = self._demask(
                tokens,
                self._guided(guidance_scale, classes, net_kwargs),
                schedule=self.schedule,
                mask_id=self.mask_id,
                steps=self.steps if steps is None else steps,
                noise=noise,
                sampler=sampler,
                start_temperature=start_temperature,
                filter_thres=filter_thres,
                can_mask_prev_unmasked=self.can_mask_prev_unmasked,
                critic=self._critic(classes, net_kwargs) if self.token_critic is not None else None,
                noise_level_scale=noise_level_scale,
            )
        finally:
            self.train(was_training)
        if single:
            result = Demasked(result.tokens[0], result.network_calls[0])
        return result if return_network_calls else result.tokens

    def _demask(self, tokens: Tensor, predict: Callable[..., tuple[Tensor, Tensor]], **options: Any) -> Demasked:
        return demask(predict, tokens, **options)

    def _guided(
        self, scale: float, classes: Tensor | None, net_kwargs: dict[str, Any]
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """`predict` under classifier-free guidance: both halves of a doubled batch in one network call."""
        if scale == 1:
            return lambda tokens, embeddings, **more: self.predict(
                tokens, embeddings, classes=classes, **net_kwargs, **more
            )
        doubled = {name: _twice(value) for name, value in net_kwargs.items()}

        def predict(tokens: Tensor, embeddings: Tensor | None, **more: Any) -> tuple[Tensor, Tensor]:
            dropped = torch.arange(2 * len(tokens), device=tokens.device) >= len(tokens)
            start = more["cache"].length if "cache" in more else 0
            both, both_classes = self._drop(_twice(tokens), _twice(classes), dropped, start)
            logits, embeddings = self.predict(both, embeddings, classes=both_classes, **doubled, **more)
            conditional, unconditional = logits.float().chunk(2)
            return unconditional + scale * (conditional - unconditional), embeddings

        return predict

    def _check_classes(self, classes: Tensor | None, batch: int) -> None:
        if classes is None or self.num_classes is None:
            return  # whether there should be classes is known in `_run`
        if classes.shape != (batch,):
            raise ValueError(f"classes of shape {tuple(classes.shape)} were given for {batch} sequences")
        inside = ((classes >= 0) & (classes < self.num_classes)).all()
        _require(inside, f"a class is outside 0..{self.num_classes - 1}")

    def _noise(self, batch: Batch, seed: int) -> Noise:
        return Noise.of_samples(seed, batch.epochs, batch.sample_ids, batch.positions)

    def predict(
        self, tokens: Tensor, embeddings: Tensor | None = None, classes: Tensor | None = None, **net_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Logits `[batch, n, num_tokens]` and embeddings `[batch, n, dim]` of tokens, int64 `[batch, n]`.

        Args:
            embeddings: those of the previous pass, for self-conditioning; None in the first.
            classes: int64 `[batch]`, with `num_classes`.
        """
        hidden = self._run(tokens, embeddings, classes, net_kwargs)
        return self.net.to_logits(hidden), hidden

    def judge(self, tokens: Tensor, classes: Tensor | None = None, **net_kwargs: Any) -> Tensor:
        """The critic's logit that each token is wrong, `[batch, n]`; a critic of its own sees no classes."""
        if isinstance(self.token_critic, SelfCritic) and self.class_emb is not None:
            net_kwargs = _with_embeds(net_kwargs, self._class_embeds(classes))
        return cast(nn.Module, self.token_critic)(tokens, **net_kwargs)[:, -tokens.shape[1] :, 0]

    def _critic(self, classes: Tensor | None, net_kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        return lambda tokens: self.judge(tokens, classes, **net_kwargs)

    def _class_embeds(self, classes: Tensor | None) -> Tensor:
        if classes is None:
            raise ValueError(f"classes are needed: the model is conditional on one of {self.num_classes}")
        return cast(Embedding, self.class_emb)(classes)[:, None]

    def _run(
        self, tokens: Tensor, previous: Tensor | None, classes: Tensor | None, net_kwargs: dict[str, Any]
    ) -> Tensor:
        """Embeddings `[batch, n, dim]` of the net, conditioned on class and `previous` embeddings."""
        if classes is not None and self.class_emb is None:
            raise ValueError("classes were given, but the model has no num_classes")
        conditions = [] if self.class_emb is None else [self._class_embeds(classes)]
        if self.self_cond:
            null = self.null_embed.expand(*tokens.shape, -1)
            conditions.append(self.to_self_cond(null if previous is None else previous))
        net_kwargs = _with_embeds(net_kwargs, *conditions)
        return self.net(tokens, return_embeddings=True, **net_kwargs)[:, -tokens.shape[1] :]

    def _maskable(self, present: Tensor, frozen: Tensor | None) -> Tensor:
        maskable = present if frozen is None else present & ~frozen
        if self.prefix_length:
            maskable = maskable & (torch.arange(present.shape[1], device=present.device) >= self.prefix_length)
        return maskable

    def _by_block(self, values: Tensor) -> Tensor:
        return values.reshape(len(values) * self.blocks, -1)

    def _drop(
        self, tokens: Tensor, classes: Tensor | None, dropped: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Take class and prefix away from the sequences `dropped`, bool `[batch]`, whose tokens are from `start` on."""
        if classes is not None and self.num_classes is not None:
            classes = classes.masked_fill(dropped, self.num_classes)
        given = max(0, self.prefix_length - start)
        if given:
            tokens = tokens.clone()
            tokens[:, :given].masked_fill_(dropped[:, None], self.mask_id)
        return tokens, classes

    def _loss_terms(
        self,
        tokens: Tensor,
        noise: Noise,
        lengths: Tensor | None,
        *,
        frozen: Tensor | None = None,
        classes: Tensor | None = None,
        critic_temperature: float | None = None,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        **net_kwargs: Any,
    ) -> LossTerms:
        self._check_classes(classes, len(tokens))
        present = torch.ones_like(tokens, dtype=torch.bool)
        if lengths is not None:
            present = length_mask(lengths, tokens.shape[1])
            prepended = net_kwargs.get("prepend_embeds")
            prefix = 0 if prepended is None else prepended.shape[1]
            net_kwargs["mask"] = F.pad(present, (prefix, 0), value=True)
        maskable = self._maskable(present, frozen)
        masked = mask_tokens(
            self._by_block(tokens),
            self._by_block(maskable),
            noise.derive(_MASK).split(self.blocks),
            self.schedule,
            self.mask_id,
            self.net.num_tokens,
            self.no_replace_prob if self.training else 0.0,
            self.random_token_prob if self.training else 0.0,
            self.masking,
        )
        visible, true = masked.tokens.view_as(tokens), tokens
        if self.training and self.condition_drop_prob > 0:
            dropped = noise.derive(_DROP_CONDITION).uniform() < self.condition_drop_prob
            true, _ = self._drop(true, None, dropped)
            visible, classes = self._drop(visible, classes, dropped)
        with torch.no_grad() if only_train_critic else nullcontext():
            embeddings = self._embed(visible, true, noise.derive(_SELF_CONDITION), classes, net_kwargs)
            hidden = masked.select(embeddings)
            losses = self.net.to_logits(hidden, self._cross_entropy, masked.select(tokens))
            weighted = losses * self._loss_weights(masked)
        row_counts = maskable.sum(dim=1)
        if not self.use_simple_mdlm_loss_weight:
            row_counts = masked.counts.view(len(tokens), -1).sum(dim=1)
        terms = [(weighted.sum(), row_counts.sum().float())]
        weights = [0.0 if only_train_critic else 1.0]
        if self.token_critic is not None and not only_train_generator:
            critic_noise = noise.derive(_CRITIC)
            answers = draw_answers(self.net, hidden.detach(), masked, self.mask_id, critic_noise, critic_temperature)
            generated = tokens.masked_scatter(masked.mask, answers)
            judged = self.judge(generated, classes, **net_kwargs)
            terms.append((critic_loss(judged, generated, tokens, present), present.sum().float()))
            weights.append(self.critic_loss_weight)
        sums, counts = (torch.stack(column) for column in zip(*terms))
        moments = sequence_moments(weighted, masked.places // tokens.shape[1], row_counts)
        return LossTerms(sums, counts, on_device(weights, sums), self._metrics(losses, masked), moments)

    def _embed(
        self, visible: Tensor, tokens: Tensor, noise: Noise, classes: Tensor | None, net_kwargs: dict[str, Any]
    ) -> Tensor:
        """Embeddings `[batch, n, dim]` of the masked sequences `visible`."""
        if not self.self_cond:
            return self._run(visible, None, classes, net_kwargs)
        with torch.no_grad():
            previous = self._run(visible, None, classes, net_kwargs)
        conditioned = noise.uniform() < self.self_cond_train_prob
        null = self.null_embed.expand(*tokens.shape, -1)
        return self._run(visible, torch.where(conditioned[:, None, None], previous, null), classes, net_kwargs)

    def _cross_entropy(self, logits: Tensor, answers: Tensor) -> Tensor:
        """In nats, float32 `[tokens]`; the mask is never an answer."""
        logits = logits.float()
        logits[:, self.mask_id] = -torch.inf
        return F.cross_entropy(logits, answers, reduction="none")

    def _loss_weights(self, masked: MaskedBatch) -> Tensor:
        """What the cross-entropy of each masked token weighs, float32 `[masked]`."""
        if not self.use_simple_mdlm_loss_weight:
            return torch.ones_like(masked.places, dtype=torch.float32)
        return masked.spread(masked.weights.float())

    @torch.no_grad()
    def _metrics(self, losses: Tensor, masked: MaskedBatch) -> dict[str, Tensor]:
        """Cross-entropy of masked tokens by the fraction of the sequence that is masked, in nats."""
        bins = masked.spread((masked.counts * MASK_FRACTION_BINS - 1) // masked.lengths.clamp(min=1))
        totals = losses.new_zeros(MASK_FRACTION_BINS, 2)
        totals.index_add_(0, bins, torch.stack((losses, torch.ones_like(losses)), dim=1))
        edges = [i / MASK_FRACTION_BINS for i in range(MASK_FRACTION_BINS + 1)]
        return {f"masked_{low:.1f}_to_{high:.1f}": row for low, high, row in zip(edges, edges[1:], totals)}


def _twice(value: Any) -> Any:
    """A tensor with a batch dimension, repeated; anything else as it is."""
    return torch.cat((value, value)) if isinstance(value, Tensor) else value


def _with_embeds(net_kwargs: dict[str, Any], *embeds: Tensor) -> dict[str, Any]:
    """Arguments of the net with more embeddings to add to those of the tokens."""
    if not embeds:
        return net_kwargs
    asked = net_kwargs.get("sum_embeds")
    return {**net_kwargs, "sum_embeds": sum(embeds, 0 if asked is None else asked)}


def _require(condition: Tensor, message: str) -> None:
    """Refuse data: a ValueError, or on a GPU, where asking at once would make every step wait, a RuntimeError later."""
    if condition.is_cuda:
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)
