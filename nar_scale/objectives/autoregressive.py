"""`AutoregressiveWrapper`: next-token prediction and left-to-right generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_scale.config import SamplerConfig
from nar_scale.data import Batch
from nar_scale.decoding import Prompts, continue_prompts, eligible, get_filter, search_beams
from nar_scale.decoding.filters import LogitFilter
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise, random_subset
from nar_scale.model import WHOLE, SequenceParallelContext, TransformerOutput, TransformerWrapper
from nar_scale.objectives.documents import check_documents, continues, document_positions, within_documents
from nar_scale.objectives.objective import Objective, Samples, evaluating
from nar_scale.objectives.predicted import PredictedTokens, slots_for
from nar_scale.objectives.terms import LossTerms, length_mask, on_device, sequence_moments

FilterChoice = str | LogitFilter | Sequence[LogitFilter] | None
_HIDE = 200  # stream of a sequence's noise


class AutoregressiveWrapper(Objective):
    """Trains a `Decoder` to predict the next token and generates left to right.

    Args:
        net: a `TransformerWrapper` around a `Decoder`.
        ignore_index: targets with this value do not count; as inputs they become `pad_value`.
        pad_value: the token that fills up prompts and follows an end token.
        mask_prob: fraction of the tokens, in [0, 1), that are hidden from attention in training, never the first one
            (forgetful causal masking, arXiv:2210.13432).
        add_attn_z_loss: add the attention z-loss (ST-MoE, arXiv:2202.08906, eq. 5).
        next_embed_loss_weight: weight of the L1 loss of the predicted next embedding, with a network that has
            `add_continuous_pred_head`.

    Raises:
        ConfigError: an `Encoder`, or a `mask_prob` outside [0, 1).
    """

    def __init__(
        self,
        net: TransformerWrapper,
        ignore_index: int = -100,
        pad_value: int = 0,
        mask_prob: float = 0.0,
        add_attn_z_loss: bool = False,
        next_embed_loss_weight: float = 0.1,
    ):
        super().__init__()
        if not net.causal:
            raise ConfigError("AutoregressiveWrapper needs a Decoder; an Encoder sees the token it is to predict")
        if not 0.0 <= mask_prob < 1.0:
            raise ConfigError(f"mask_prob must be at least 0 and below 1, not {mask_prob}")
        self.net = net
        self.max_seq_len = net.max_seq_len
        self.ignore_index, self.pad_value, self.mask_prob = ignore_index, pad_value, mask_prob
        self.add_attn_z_loss, self.next_embed_loss_weight = add_attn_z_loss, next_embed_loss_weight

    @property
    def term_names(self) -> tuple[str, ...]:
        """`token_loss`, and those of the optional losses that are there."""
        optional = [("attention_z_loss", self.add_attn_z_loss), ("next_embed_loss", self.net.add_continuous_pred_head)]
        return ("token_loss", *(name for name, present in optional if present))

    @property
    def likelihood_kind(self) -> str:
        """`exact`: the token loss is the negative log-likelihood."""
        return "exact"

    def counts(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """The number of predicted tokens, for each term; see `Objective`."""
        predicted = length_mask(batch.lengths - 1, batch.tokens.shape[1] - 1)
        if batch.documents is not None:
            predicted = predicted & continues(batch.documents)
        return predicted.sum().float().expand(len(self.term_names)).clone()

    def loss_terms(self, batch: Batch, *, seed: int = 0) -> LossTerms:
        """The loss terms of a batch of the training stream; see `Objective`. The seed is that of hidden tokens."""
        noise = Noise.of_samples(seed, batch.epochs, batch.sample_ids, batch.positions)
        lengths, sequence_parallel = (
            batch.lengths if batch.padded else None,
            self.sequence_parallel if self.training else WHOLE,
        )
        slots = self._slots(batch, sequence_parallel)
        return self._loss_terms(batch.tokens, noise, lengths, batch.documents, None, {}, sequence_parallel, slots)[0]

    def forward(
        self,
        x: Tensor,
        return_outputs: bool = False,
        prepend_embeds: Tensor | None = None,
        lens: Tensor | None = None,
        *,
        documents: Tensor | None = None,
        **net_kwargs: Any,
    ) -> Any:
        """Predict each token from those before it.

        The documents of a sample do not see each other: the loss is that of each on its own, without its first token.

        Args:
            x: token ids, int64 `[batch, n]`.
            return_outputs: also return logits and embeddings.
            prepend_embeds: a prefix of embeddings that is attended but not predicted, `[batch, prefix, dim]`.
            lens: int64 `[batch]`, true lengths of padded sequences.
            documents: int64 `[batch, n]`, the number of the document that each token belongs to, never falling from
                left to right; None for one document.
            net_kwargs: further arguments of the network.

        Returns:
            the loss, a scalar in nats per predicted token, and with `return_outputs`
            `(loss, (logits [batch, n - 1, num_tokens], TransformerOutput))`.

        Raises:
            ValueError: documents that do not fit the tokens (a RuntimeError from the device on GPUs, where checking at
                once would make every step wait), or with `prepend_embeds`.
        """
        if documents is not None:
            check_documents(documents, x, lens)
        # a device need not count what is predicted where that is all but the first tokens
        slots = x[:, 1:].numel() if x.device.type != "cpu" and lens is None and documents is None else None
        noise = Noise.draw(len(x), x.device)
        terms, output = self._loss_terms(x, noise, lens, documents, prepend_embeds, net_kwargs, slots=slots)
        loss = terms.total()
        return (loss, (self.net.to_logits(output.embeddings), output)) if return_outputs else loss

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor | list[Tensor],
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice = "top_k",
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        filter_kwargs: dict[str, Any] | None = None,
        contrastive_decode_kwargs: dict[str, float] | Sequence[dict[str, float]] | None = None,
        cache_kv: bool = True,
        return_prompt: bool = True,
        noise: Noise | None = None,
        compile: bool = False,
        callback: Callable[[Tensor, int], None] | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """Continue prompts by up to `seq_len` tokens.

        Args:
            prompts: int64 `[batch, n]` or `[n]`, or a list of `[n_i]` of different lengths.
            seq_len: tokens to generate for each prompt, at most.
            eos_token: ends a sequence; what follows it is `pad_value`.
            temperature: divides the logits; 0 for the most probable token at each step.
            prompt_lens: int64 `[batch]`, true lengths of prompts that are padded on the right.
            filter_logits_fn: `top_k`, `top_p`, `min_p`, `top_a`, a callable, several callables that are applied one
                after another, or None for no filter.
            amateur_model: one or several models for contrastive decoding (arXiv:2309.09117), which has no filter.
            filter_kwargs: arguments of the filter.
            contrastive_decode_kwargs: `alpha` and `beta`, one dictionary for each amateur.
            cache_kv: keep keys and values of earlier tokens.
            return_prompt: return the prompt too, when it is a tensor without `prompt_lens`.
            noise: the source of all randomness; if None, it is drawn from torch's default generator.
            compile: run each step but the first through `torch.compile`, on GPUs as one CUDA graph; the first call for
                a number of prompts and a length, rounded up to a multiple of 64, then takes up to minutes.
            callback: is called after each step with what has been generated so far, int64 `[batch, n]`, `pad_value`
                after ends, and the number of the step, from 1.
            conditions: further arguments of the network, with a row for each prompt: `context` and `context_mask`, and
                `prepend_embeds` as in `forward`, which are not returned.

        Returns:
            int64 `[batch, n + seq_len]` (shorter if all sequences have ended), without the prompt
            `[batch, seq_len]`.

        Raises:
            ValueError: an empty prompt, conditions that do not fit, or `compile` without `cache_kv`.
        """
        if compile and not cache_kv:
            raise ValueError("compiled steps keep keys and values; leave cache_kv on or compile off")
        check_sampling(seq_len, temperature)
        given = self._prompts(prompts, prompt_lens)
        amateurs = _pair(amateur_model, contrastive_decode_kwargs)
        with evaluating(self, *(model for model, _ in amateurs)):
            generated = continue_prompts(
                self.net,
                given,
                seq_len,
                noise=noise or Noise.draw(len(given.tokens), given.tokens.device),
                temperature=temperature,
                filters=() if amateurs else chosen_filters(filter_logits_fn, filter_kwargs),
                eos_token=eos_token,
                pad_value=self.pad_value,
                amateurs=[(_net(model), settings) for model, settings in amateurs],
                use_cache=cache_kv,
                compile=compile,
                conditions=conditions,
                callback=callback,
            )
        if return_prompt and isinstance(prompts, Tensor) and prompt_lens is None:
            generated = torch.cat((given.tokens, generated), dim=1)
        return generated[0] if _is_single(prompts) else generated

    @torch.no_grad()
    def beam_search(
        self,
        prompts: Tensor | list[Tensor],
        seq_len: int,
        beams: int = 4,
        return_beams_and_scores: bool = False,
        eos_token: int | None = None,
        temperature: float = 1.0,
        stochastic: bool = False,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice = None,
        filter_kwargs: dict[str, Any] | None = None,
        cache_kv: bool = True,
        noise: Noise | None = None,
        **conditions: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The most probable continuation that a search with `beams` hypotheses finds; other arguments as in `generate`.

        Args:
            beams: hypotheses that are kept for each prompt.
            return_beams_and_scores: return all beams.
            temperature: of the drawing of stochastic beams.
            stochastic: sample the beams without replacement (arXiv:1903.06059).

        Returns:
            int64 `[batch, seq_len]`, the continuation alone; with `return_beams_and_scores` the beams
            `[batch, beams, seq_len]`, the most probable first, and their log-probabilities in nats, `[batch, beams]`.

        Raises:
            ConfigError: more beams than tokens in the vocabulary.
            ValueError: an empty prompt.
        """
        check_sampling(seq_len, temperature)
        given = self._prompts(prompts, prompt_lens)
        with evaluating(self):
            tokens, scores = search_beams(
                self.net,
                given,
                seq_len,
                beams=beams,
                noise=noise or Noise.draw(len(given.tokens), given.tokens.device),
                temperature=temperature,
                stochastic=stochastic,
                filters=chosen_filters(filter_logits_fn, filter_kwargs),
                eos_token=eos_token,
                pad_value=self.pad_value,
                use_cache=cache_kv,
                conditions=conditions,
            )
        if _is_single(prompts):
            tokens, scores = tokens[0], scores[0]
        return (tokens, scores) if return_beams_and_scores else tokens[..., 0, :]

    def start_from(self, prompt: list[int], length: int, end_token: int | None) -> list[int]:
        """The prompt, or where it is empty the end token (0 if it is unknown), after which a document begins."""
        return prompt or [end_token or 0]

    def sample(
        self,
        given: Tensor,
        decoding: SamplerConfig,
        noise: Noise,
        *,
        length: int | None = None,
        classes: Tensor | None = None,
        end_token: int | None = None,
    ) -> Samples:
        """Continue prompts, all of one length; see `Objective`."""
        if decoding.sampler != "left_to_right":
            raise ConfigError(f"the sampler {decoding.sampler} is not for autoregressive models")
        generated = self.generate(
            given,
            (length or self.max_seq_len) - given.shape[1],
            eos_token=end_token,
            temperature=decoding.temperature,
            filter_logits_fn=eligible(decoding.top_k, decoding.top_p),
            return_prompt=False,
            noise=noise,
        )
        tokens, calls = [], []
        for row in generated.tolist():
            end = row.index(end_token) if end_token in row else len(row)
            tokens.append(row[:end])
            calls.append(min(end + 1, len(row)))
        return Samples(tokens, calls)

    def probe_tokens(self, bits: Tensor) -> Tensor:
        """Any tokens; see `Objective`."""
        return bits % self.net.num_tokens

    def run_probe(self, tokens: Tensor) -> dict[str, Tensor]:
        """The logits; see `Objective`."""
        return {"logits": self.net(tokens)}

    def _prompts(self, prompts: Tensor | list[Tensor], lengths: Tensor | None) -> Prompts:
        return Prompts.of(prompts, lengths, self.net.num_tokens, self.net.token_emb.weight.device)

    def _loss_terms(
        self,
        tokens: Tensor,
        noise: Noise,
        lengths: Tensor | None,
        documents: Tensor | None,
        prepend_embeds: Tensor | None,
        net_kwargs: dict[str, Any],
        sequence_parallel: SequenceParallelContext = WHOLE,
        slots: int | None = None,
    ) -> tuple[LossTerms, TransformerOutput]:
        if lengths is not None:
            tokens = tokens.masked_fill(~length_mask(lengths, tokens.shape[1]), self.ignore_index)
        # the last token has nothing to predict; it is an input only where the inputs would not divide without it
        extra = -(tokens.shape[1] - 1) % sequence_parallel.size
        targets = F.pad(tokens[:, 1:], (0, extra), value=self.ignore_index)
        net_kwargs = {**net_kwargs, "prepend_embeds": prepend_embeds}
        if documents is not None:
            targets = targets.masked_fill(~F.pad(continues(documents), (0, extra), value=True), self.ignore_index)
            net_kwargs = within_documents(self.net, documents, net_kwargs, targets.shape[1])
        inputs = tokens[:, : targets.shape[1]]
        inputs = inputs.masked_fill(inputs == self.ignore_index, self.pad_value)
        predicted = targets != self.ignore_index
        prefix = prepend_embeds.shape[1] if prepend_embeds is not None else 0
        if (
            self.net.add_continuous_pred_head
            and self.net.pos_emb is not None
            and prefix + tokens.shape[1] > self.max_seq_len
        ):
            raise ValueError(
                f"{prefix + tokens.shape[1]} tokens exceed max_seq_len {self.max_seq_len}: the continuous head needs a "
                "learned position for the last target too"
            )
        if self.mask_prob > 0 and self.training:
            visible = self._visible(inputs[:, : tokens.shape[1] - 1], documents, noise.derive(_HIDE))
            visible = F.pad(visible, (prefix, extra), value=True)
            asked = net_kwargs.get("mask")
            net_kwargs = {**net_kwargs, "mask": visible if asked is None else visible & asked}
        output = self.net(
            inputs,
            return_output=True,
            with_z_loss=self.add_attn_z_loss,
            sequence_parallel=sequence_parallel,
            **net_kwargs,
        )
        output = output._replace(embeddings=output.embeddings[:, prefix:])

        found = PredictedTokens.of(predicted, sequence_parallel, slots)
        embeddings = found.select_local(output.embeddings)
        answers = found.answers(targets)
        losses = self.net.to_logits(embeddings, cross_entropy, answers)
        sums = [losses.sum()]
        weights = [1.0]
        if self.add_attn_z_loss:
            z_losses = found.select_local(output.attention_z_loss[:, prefix:])
            sums.append(z_losses.masked_fill(~found.filled, 0).sum())
            weights.append(self.net.attn_z_loss_weight)
        if self.net.add_continuous_pred_head:
            positions = prefix + 1 + found.positions % targets.shape[1]
            if documents is not None:
                positions = found.select(document_positions(documents)[:, 1:])
            distances = self._next_embed_distances(embeddings, answers.masked_fill(~found.filled, 0), positions)
            sums.append(distances.masked_fill(~found.filled, 0).sum())
            weights.append(self.next_embed_loss_weight)
        row_counts = sequence_parallel.shard(predicted).sum(dim=1)
        count = row_counts.sum().float().expand(len(sums))
        moments = sequence_moments(losses, found.rows(len(targets)), row_counts)
        return LossTerms(torch.stack(sums), count, on_device(weights, sums[0]), {}, moments), output

    def _slots(self, batch: Batch, sequence_parallel: SequenceParallelContext) -> int | None:
        """Slots for the predicted tokens of a batch on a GPU, counted in its copy on the host; None if it has none."""
        host = batch.on_host
        if host is None:
            return None
        predicted = length_mask(host.lengths - 1, host.tokens.shape[1] - 1)
        if host.documents is not None:
            predicted = predicted & continues(host.documents)
        mine = sequence_parallel.shard(F.pad(predicted, (0, -predicted.shape[1] % sequence_parallel.size)))
        return slots_for(mine.sum(), mine.numel())

    def _visible(self, inputs: Tensor, documents: Tensor | None, noise: Noise) -> Tensor:
        """Hide an exact fraction of the tokens, never a document's first."""
        n = inputs.shape[1]
        candidates = torch.ones_like(inputs, dtype=torch.bool)
        candidates[:, 0] = False
        if documents is not None:
            candidates[:, 1:] = continues(documents[:, :n])
        hidden = candidates.sum(dim=1).clamp(max=int(n * self.mask_prob))
        return ~random_subset(candidates, hidden, noise)

    def _next_embed_distances(self, embeddings: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
        """L1 distances to the next tokens' embeddings, positions included: means over channels, `[slots]`."""
        truth = self.net.token_emb(targets).detach()
        if self.net.pos_emb is not None:
            truth = truth + self.net.pos_emb(positions).detach()
        return (self.net.to_next_embed_pred(embeddings) - truth).abs().mean(dim=-1)


def cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """In nats, float32 `[tokens]`, from logits `[tokens, num_tokens]` and the true tokens, int64 `[tokens]`."""
    return F.cross_entropy(logits.float(), answers, reduction="none")


def chosen_filters(which: FilterChoice, settings: dict[str, Any] | None = None) -> Sequence[LogitFilter]:
    """The filters that `filter_logits_fn` and `filter_kwargs` of `generate` name.

    Raises:
        ConfigError: there is no filter with that name.
        ValueError: settings without one filter that they could be of.
    """
    if isinstance(which, Sequence) and not isinstance(which, str):
        if settings:
            raise ValueError("several filters have their own arguments; leave filter_kwargs out")
        return which
    if which is None and settings:
        raise ValueError(f"filter_kwargs {settings} were given without a filter; name one or leave them out")
    return [] if which is None else [partial(get_filter(which), **(settings or {}))]


def check_sampling(seq_len: int, temperature: float) -> None:
    """Refuse what no sequence can be sampled with.

    Raises:
        ValueError: a negative number of tokens, or a temperature that is negative or not finite.
    """
    if seq_len < 0:
        raise ValueError(f"seq_len {seq_len} is negative; give the number of tokens to generate")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature cannot be {temperature}; give 0 for the most probable tokens, or more")


def _is_single(prompts: Tensor | list[Tensor]) -> bool:
    return isinstance(prompts, Tensor) and prompts.ndim == 1


def _net(model: nn.Module) -> TransformerWrapper:
    return model.net if isinstance(model, AutoregressiveWrapper) else cast(TransformerWrapper, model)


def _pair(
    models: nn.Module | Sequence[nn.Module] | None, settings: dict[str, float] | Sequence[dict[str, float]] | None
) -> list[tuple[nn.Module, dict[str, float]]]:
    if models is None:
        return []
    models = [models] if isinstance(models, nn.Module) else list(models)
    settings = [settings or {}] * len(models) if settings is None or isinstance(settings, dict) else list(settings)
    if len(models) != len(settings):
        raise ValueError(f"{len(models)} amateur models but {len(settings)} contrastive_decode_kwargs")
    return list(zip(models, settings))
