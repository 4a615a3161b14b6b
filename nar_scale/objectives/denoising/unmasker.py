"""`Unmasker`: a denoiser that generates by filling in masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.config import (
    SAMPLERS,
    UNMASKING_SAMPLERS,
    UNSCHEDULED_SAMPLERS,
    ConfidenceDecoding,
    SamplerConfig,
)
from nar_scale.decoding import Filters, Sampler, StepCallback, Unmasked, make_sampler, resolve_decoding, unmask
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise, Schedule
from nar_scale.objectives.denoising.denoiser import Denoiser
from nar_scale.objectives.denoising.guided_network import GuidedNetwork
from nar_scale.objectives.documents import check_documents, within_documents
from nar_scale.objectives.objective import Samples, evaluating, without_padding
from nar_scale.objectives.terms import length_mask

_FILTER_THRES = 0.7  # of x-transformers


class Unmasker(Denoiser):
    """Generates with the prediction of masked tokens; a subclass trains it and sets what decoding needs to know.

    Attributes:
        schedule: the masked fraction over the progress of unmasking.
        steps: network calls of the samplers that reveal a scheduled number of tokens in each.
        can_mask_prev_unmasked: whether `confidence` and `random` may mask tokens again that they have revealed.
    """

    schedule: Schedule
    steps: int
    can_mask_prev_unmasked: bool

    @torch.no_grad()
    def generate(
        self,
        batch_size: int | None = None,
        start_temperature: float = 1.0,
        filter_thres: float = _FILTER_THRES,
        noise_level_scale: float = 1.0,
        *,
        prompts: Tensor | None = None,
        seq_len: int | None = None,
        sampler: str | SamplerConfig = "confidence",
        sampler_options: Mapping[str, Any] | None = None,
        steps: int | None = None,
        noise: Noise | None = None,
        classes: Tensor | None = None,
        documents: Tensor | None = None,
        guidance_scale: float = 1.0,
        return_network_calls: bool = False,
        callback: StepCallback | None = None,
        compile: bool = False,
        **net_kwargs: Any,
    ) -> Tensor | Unmasked:
        """Fill in masks: those of `prompts`, those that follow them, or all of a sequence.

        Args:
            batch_size: number of sequences; None for one, without batch dimension.
            start_temperature: of the first step; with the `confidence` sampler it falls linearly to 0.
            filter_thres: keeps the `ceil((1 - filter_thres) * num_tokens)` most probable tokens at each position.
            noise_level_scale: scale of the Gumbel noise on a critic's logits, with the `confidence` sampler.
            prompts: int64 `[batch, n]` or `[n]` with `mask_id` where tokens are wanted; the others stay as they are.
            seq_len: tokens to generate after the prompts, as in the autoregressive `generate`; None for as many as
                `max_seq_len` leaves after prompts without any mask, and for none after those with masks.
            sampler: by name, see `nar_scale.config.sections.decoding`, or as settings, in the place of temperature,
                filter, steps and guidance given here: `ThresholdDecoding(sampler="threshold", threshold=0.8)`.
            sampler_options: settings of a sampler that is given by name, such as `{"threshold": 0.8}`.
            steps: network calls at most; if None, the wrapper's number, or as many as samplers need that have no
                schedule.
            noise: the source of all randomness; if None, it is drawn from torch's default generator.
            classes: int64 `[batch]`, with `num_classes`.
            documents: int64, of the shape of `prompts`, to fill in several documents at once; as in `forward`.
            guidance_scale: how far logits go from the unconditional ones in the direction of the conditional ones:
                1 for the conditional, 0 for the unconditional (arXiv:2207.12598, with scale 1 + w).
            return_network_calls: return `Unmasked`.
            callback: is called after each network call, see `nar_scale.decoding.StepCallback`.
            compile: run the network through `torch.compile`, which takes up to minutes for each new shape; from scratch
                there are two, since the first call needs one sequence alone.
            net_kwargs: further arguments of the network.

        Returns:
            int64 `[batch_size, max_seq_len]`, of prompts `[batch, n]` or `[batch, n + seq_len]`, and of one sequence
            without the first dimension; never a mask token.

        Raises:
            UserError: a sampler or a setting that is unknown, out of range or not for this model.
            ValueError: a prompt that is empty, too long or holds ids that do not exist; a `seq_len` without prompts or
                below 0; classes or documents that do not fit; guidance without a condition; documents or `compile`
                with block diffusion.
        """
        asked = {"temperature": start_temperature, "guidance": guidance_scale, "steps": steps}
        decoding = self._decoding(sampler, asked, filter_thres, sampler_options or {})
        device = self.net.token_emb.weight.device
        tokens = self._to_fill(prompts, seq_len, 1 if batch_size is None else batch_size).to(device)
        single = batch_size is None if prompts is None else prompts.ndim == 1
        classes = None if classes is None else classes.to(device).view(-1)
        documents = None if documents is None else documents.to(device).view(-1, documents.shape[-1])
        settings = {"compile": compile, "noise_level_scale": noise_level_scale, "callback": callback, **net_kwargs}
        noise = noise or Noise.draw(len(tokens), device)
        result = self._fill_in(tokens, decoding, noise, classes=classes, documents=documents, **settings)
        if single:
            result = Unmasked(result.tokens[0], result.network_calls[0])
        return result if return_network_calls else result.tokens

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
        """Fill in the masks of sequences; see `Objective`."""
        settings: dict[str, Any] = {"classes": classes, "callback": callback}
        if lengths is not None:
            settings["mask"] = length_mask(lengths, given.shape[1])
            given = given.masked_fill(~settings["mask"], int(self.mask_id == 0))  # padding is not filled in
        tokens, network_calls = self._fill_in(given, decoding, noise, **settings)
        return Samples(without_padding(tokens, lengths), network_calls.tolist())

    @torch.no_grad()
    def _fill_in(
        self,
        tokens: Tensor,
        decoding: SamplerConfig,
        noise: Noise,
        *,
        classes: Tensor | None = None,
        documents: Tensor | None = None,
        compile: bool = False,
        noise_level_scale: float = 1.0,
        callback: StepCallback | None = None,
        end_token: int | None = None,
        **net_kwargs: Any,
    ) -> Unmasked:
        """Fill in the masks of `tokens`, int64 `[batch, n]`; arguments as in `generate`, `end_token` as in `sample`."""
        self._check_generation(tokens, classes, documents, compile)
        if documents is not None:
            net_kwargs = self._within(documents, net_kwargs)
        sampler = partial(
            make_sampler,
            schedule=self.schedule,
            critic=self.token_critic is not None,
            critic_noise=noise_level_scale,
            can_mask_revealed=self.can_mask_prev_unmasked,
        )
        network = partial(
            GuidedNetwork,
            self,
            scale=decoding.guidance,
            classes=classes,
            net_kwargs=net_kwargs,
            compile=compile,
        )
        with evaluating(self):
            return self._unmask(tokens, network, sampler, decoding, noise, callback, end_token)

    def _unmask(
        self,
        tokens: Tensor,
        network: Callable[..., GuidedNetwork],
        sampler: Callable[[SamplerConfig], Sampler],
        decoding: SamplerConfig,
        noise: Noise,
        callback: StepCallback | None,
        end_token: int | None,
    ) -> Unmasked:
        filters = Filters(self.mask_id, decoding.top_k, decoding.top_p)
        settings: dict[str, Any] = {"temperature": decoding.temperature, "callback": callback}
        return unmask(network(tokens), tokens, sampler(decoding), filters, noise, **settings)

    def _decoding(
        self, sampler: str | SamplerConfig, asked: dict[str, Any], filter_thres: float, options: Mapping[str, Any]
    ) -> SamplerConfig:
        """The settings of a sampler; if it is given by name, with what is asked for in x-transformers' way."""
        if not isinstance(sampler, str):
            if options or asked["steps"] is not None:
                raise ValueError(f"steps and sampler_options are for samplers by name; put them into {sampler!r}")
            return sampler
        if sampler in SAMPLERS and sampler not in UNMASKING_SAMPLERS:
            raise ConfigError(f"sampler {sampler} fills in no masks; use one of {', '.join(UNMASKING_SAMPLERS)}")
        if not 0 <= filter_thres <= 1:
            raise ValueError(f"filter_thres must be in 0..1, not {filter_thres}")
        if asked["steps"] is None:
            del asked["steps"]
            if sampler in SAMPLERS and sampler not in UNSCHEDULED_SAMPLERS:
                asked["steps"] = self.steps
        kept = max(1, math.ceil((1 - filter_thres) * self.net.num_tokens))
        if kept < self.net.num_tokens:
            asked["top_k"] = kept
        return resolve_decoding(ConfidenceDecoding(sampler="confidence"), sampler, {**asked, **options})

    def _to_fill(self, prompts: Tensor | None, seq_len: int | None, batch_size: int) -> Tensor:
        """Sequences with masks where tokens are wanted, int64 `[batch, n]`; arguments as in `generate`."""
        if prompts is None:
            if seq_len is not None:
                raise ValueError("seq_len counts the tokens after prompts; give prompts too")
            return torch.full((batch_size, self.max_seq_len), self.mask_id)
        if not isinstance(prompts, Tensor):
            raise ValueError(f"prompts are a tensor [batch, n] of token ids, not a {type(prompts).__name__}")
        tokens = prompts[None] if prompts.ndim == 1 else prompts
        if tokens.ndim != 2:
            return tokens  # to be refused
        if seq_len is None and tokens.numel() and not bool((tokens == self.mask_id).any()):
            seq_len = max(0, self.max_seq_len - tokens.shape[-1])
        if seq_len is not None and seq_len < 0:
            raise ValueError(f"seq_len {seq_len} is negative; give the number of tokens to generate")
        return F.pad(tokens, (0, seq_len or 0), value=self.mask_id)

    def _check_generation(
        self, tokens: Tensor, classes: Tensor | None, documents: Tensor | None, compile: bool
    ) -> None:
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(f"there is nothing to fill in: the prompt has the shape {tuple(tokens.shape)}")
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(f"the prompt has {tokens.shape[1]} tokens, but max_seq_len is {self.max_seq_len}")
        lowest, highest = (int(each) for each in tokens.aminmax())
        if lowest < 0 or highest >= self.net.num_tokens:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"the prompt has the token id {wrong}, outside 0..{self.net.num_tokens - 1}")
        if classes is not None:
            self.check_classes(classes.cpu(), len(tokens))
        if documents is not None:
            check_documents(documents, tokens, None)

    def _within(self, documents: Tensor, net_kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.prefix_length:
            raise ValueError("documents and prefix_length exclude each other; pack one document into a sample")
        return within_documents(self.net, documents, net_kwargs)
