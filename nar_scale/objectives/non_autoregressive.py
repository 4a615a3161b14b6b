"""`NonAutoregressiveWrapper`: masked prediction in training, iterative demasking in generation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_scale.data import Batch
from nar_scale.decoding import Demasked, Sampler, demask, sample
from nar_scale.errors import ConfigError
from nar_scale.masking import MaskedBatch, Noise, get_schedule, mask_tokens
from nar_scale.model import TransformerWrapper
from nar_scale.model.layers import Linear
from nar_scale.objectives.terms import LossTerms, length_mask, on_device, sequence_moments

# streams of one sequence's noise; `mask_tokens` derives its own below the first
_MASK, _SELF_CONDITION, _CRITIC = range(100, 103)
MASK_FRACTION_BINS = 5


class Losses(NamedTuple):
    """What a forward pass returns: scalars, None where a part is not trained."""

    loss: Tensor
    generator_loss: Tensor | None
    critic_loss: Tensor | None


class SelfCritic(nn.Module):
    """A critic that shares the generator's net and adds one linear head (Token-Critic, arXiv:2209.04439)."""

    def __init__(self, net: TransformerWrapper):
        super().__init__()
        self.net = net
        self.to_logits = Linear(net.emb_dim, 1)

    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """The logit that each token is wrong, `[batch, n, 1]`."""
        return self.to_logits(self.net(tokens, return_embeddings=True, **kwargs))


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
    ):
        super().__init__()
        if net.causal:
            raise ConfigError("NonAutoregressiveWrapper needs an Encoder; a Decoder cannot see what follows a mask")
        if not 0 <= mask_id < net.num_tokens:
            raise ConfigError(f"mask_id {mask_id} is outside the vocabulary of {net.num_tokens} tokens")
        if self_token_critic and token_critic is not None:
            raise ConfigError("token_critic and self_token_critic exclude each other; choose one")
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
        masked_counts = self.schedule.masked_count(self._noise(batch, seed).progress(), batch.lengths)
        counts = (self._sequence_counts(masked_counts, batch.lengths).sum(), batch.lengths.sum())
        return torch.stack(counts[: len(self.term_names)]).float()

    def forward(
        self,
        x: Tensor | Batch,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        *,
        frozen: Tensor | None = None,
        lens: Tensor | None = None,
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
            seed: of the masks, with a `Batch`; a tensor's masks come from torch's default generator.
            net_kwargs: passed to the net.

        Returns:
            `Losses` in nats per token for a tensor, `LossTerms` for a `Batch`.

        Raises:
            ValueError: a sequence of the wrong length, or one that contains the mask id (a RuntimeError from the
                device on GPUs, where checking at once would make every step wait); a critic that is not there.
        """
        if isinstance(x, Batch):
            lengths = x.lengths if x.padded else None
            return self._loss_terms(x.tokens, self._noise(x, seed), lengths, None, None, False, False, {})
        if x.shape[1] != self.max_seq_len:
            raise ValueError(f"sequences have {x.shape[1]} tokens, but max_seq_len is {self.max_seq_len}")
        if only_train_critic and self.token_critic is None:
            raise ValueError("only_train_critic, but there is no token_critic and no self_token_critic")
        self._refuse_mask_id(x)
        terms = self._loss_terms(
            x,
            Noise.draw(len(x), x.device),
            lens,
            frozen,
            generator_sample_temperature,
            only_train_generator,
            only_train_critic,
            net_kwargs,
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
            return_network_calls: return `Demasked`.

        Returns:
            int64 `[batch_size, max_seq_len]` or, for one sequence, `[max_seq_len]`; never a mask token.
        """
        device = self.net.token_emb.weight.device
        single = batch_size is None if prompt is None else prompt.ndim == 1
        if prompt is None:
            prompt = torch.full((batch_size or 1, self.max_seq_len), self.mask_id, device=device)
        tokens = prompt.to(device).view(-1, prompt.shape[-1])
        noise = noise or Noise.draw(len(tokens), device)

        was_training = self.training
        self.eval()
        try:
            result = demask(
                lambda tokens, embeddings: self.predict(tokens, embeddings, **net_kwargs),
                tokens,
                mask_id=self.mask_id,
                schedule=self.schedule,
                steps=self.steps if steps is None else steps,
                noise=noise,
                sampler=sampler,
                start_temperature=start_temperature,
                filter_thres=filter_thres,
                can_mask_prev_unmasked=self.can_mask_prev_unmasked,
                critic=self.judge if self.token_critic is not None else None,
                noise_level_scale=noise_level_scale,
            )
        finally:
            self.train(was_training)
        if single:
            result = Demasked(result.tokens[0], result.network_calls[0])
        return result if return_network_calls else result.tokens

    def _refuse_mask_id(self, tokens: Tensor) -> None:
        message = f"the data contains the mask id {self.mask_id}"
        clean = (tokens != self.mask_id).all()
        if tokens.is_cuda:
            torch._assert_async(clean, message)
        elif not clean:
            raise ValueError(message)

    def _noise(self, batch: Batch, seed: int) -> Noise:
        return Noise.of_samples(seed, batch.epochs, batch.sample_ids, batch.positions)

    def predict(self, tokens: Tensor, embeddings: Tensor | None = None, **net_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Logits `[batch, n, num_tokens]` and embeddings `[batch, n, dim]` of tokens, int64 `[batch, n]`.

        Args:
            embeddings: those of the previous pass, for self-conditioning; None in the first.
        """
        if self.self_cond:
            condition = self.null_embed.expand(*tokens.shape, -1) if embeddings is None else embeddings
            net_kwargs = {**net_kwargs, "sum_embeds": self.to_self_cond(condition)}
        return self.net(tokens, return_logits_and_embeddings=True, **net_kwargs)

    def judge(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """The critic's logit that each token is wrong, `[batch, n]`."""
        return cast(nn.Module, self.token_critic)(tokens, **kwargs)[..., 0]

    def _loss_terms(
        self,
        tokens: Tensor,
        noise: Noise,
        lengths: Tensor | None,
        frozen: Tensor | None,
        critic_temperature: float | None,
        only_train_generator: bool,
        only_train_critic: bool,
        net_kwargs: dict[str, Any],
    ) -> LossTerms:
        present = (
            torch.ones_like(tokens, dtype=torch.bool) if lengths is None else length_mask(lengths, tokens.shape[1])
        )
        if lengths is not None:
            net_kwargs = {**net_kwargs, "mask": present}
        masked = mask_tokens(
            tokens,
            present if frozen is None else present & ~frozen,
            noise.derive(_MASK),
            self.schedule,
            self.mask_id,
            self.net.num_tokens,
            self.no_replace_prob if self.training else 0.0,
            self.random_token_prob if self.training else 0.0,
        )
        with torch.no_grad() if only_train_critic else nullcontext():
            hidden = self._embed(masked.tokens, noise.derive(_SELF_CONDITION), net_kwargs)
            logits = self.net.to_logits(masked.select(hidden)).float()
            logits[:, self.mask_id] = -torch.inf
            losses = F.cross_entropy(logits, masked.select(tokens), reduction="none")
            weighted = losses * self._loss_weights(masked)
        terms = [(weighted.sum(), self._sequence_counts(masked.counts, masked.lengths).sum().float())]
        weights = [0.0 if only_train_critic else 1.0]
        if self.token_critic is not None and not only_train_generator:
            terms.append(self._critic_term(tokens, present, logits, masked, noise, critic_temperature, net_kwargs))
            weights.append(self.critic_loss_weight)
        sums, counts = (torch.stack(column) for column in zip(*terms))
        moments = sequence_moments(weighted, masked.rows, self._sequence_counts(masked.counts, masked.lengths))
        return LossTerms(sums, counts, on_device(weights, sums), self._metrics(losses, masked), moments)

    def _embed(self, tokens: Tensor, noise: Noise, net_kwargs: dict[str, Any]) -> Tensor:
        if self.self_cond:
            condition = self.null_embed.expand(*tokens.shape, -1)
            with torch.no_grad():
                previous = self.net(
                    tokens, sum_embeds=self.to_self_cond(condition), return_embeddings=True, **net_kwargs
                )
            conditioned = noise.uniform() < self.self_cond_train_prob
            condition = torch.where(conditioned[:, None, None], previous, condition)
            net_kwargs = {**net_kwargs, "sum_embeds": self.to_self_cond(condition)}
        return self.net(tokens, return_embeddings=True, **net_kwargs)

    def _loss_weights(self, masked: MaskedBatch) -> Tensor:
        """What the cross-entropy of each masked token weighs, float32 `[masked]`."""
        if not self.use_simple_mdlm_loss_weight:
            return torch.ones_like(masked.places, dtype=torch.float32)
        return masked.spread(self.schedule.loss_weight(masked.counts, masked.lengths).float())

    def _sequence_counts(self, counts: Tensor, lengths: Tensor) -> Tensor:
        """What the generator's loss of each sequence is divided by, int64 `[batch]`."""
        return lengths if self.use_simple_mdlm_loss_weight else counts

    def _critic_term(
        self,
        tokens: Tensor,
        present: Tensor,
        logits: Tensor,
        masked: MaskedBatch,
        noise: Noise,
        temperature: float | None,
        net_kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """How well the critic tells the generator's tokens, sampled at a temperature, from the true ones."""
        noise = noise.derive(_CRITIC)
        temperatures = noise.derive(0).uniform()
        if temperature is not None:
            temperatures = torch.full_like(temperatures, temperature)
        with torch.no_grad():
            cooled = logits.double() / masked.spread(temperatures.clamp(min=1e-2))[:, None]
            drawn = sample(cooled, 1.0, masked.select(noise.uniform(tokens.shape[1])))
            generated = tokens.masked_scatter(masked.mask, drawn)
        judged = self.judge(generated, **net_kwargs).float()
        wrong = (generated != tokens).float()
        losses = F.binary_cross_entropy_with_logits(judged, wrong, reduction="none")
        return (losses * present).sum(), present.sum().float()

    @torch.no_grad()
    def _metrics(self, losses: Tensor, masked: MaskedBatch) -> dict[str, Tensor]:
        """Cross-entropy of masked tokens by the fraction of the sequence that is masked, in nats."""
        bins = masked.spread((masked.counts * MASK_FRACTION_BINS - 1) // masked.lengths.clamp(min=1))
        totals = losses.new_zeros(MASK_FRACTION_BINS, 2)
        totals.index_add_(0, bins, torch.stack((losses, torch.ones_like(losses)), dim=1))
        edges = [i / MASK_FRACTION_BINS for i in range(MASK_FRACTION_BINS + 1)]
        return {f"masked_{low:.1f}_to_{high:.1f}": row for low, high, row in zip(edges, edges[1:], totals)}
