"""`LeftToRightGenerator`: generation one token after another, with the conventions of x-transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nar_scale.config import LeftToRightDecoding, SamplerConfig
from nar_scale.decoding import (
    Prompts,
    StepCallback,
    continue_prompts,
    eligible,
    get_filter,
    search_beams,
    speculate,
)
from nar_scale.decoding.filters import LogitFilter
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise
from nar_scale.model import TransformerWrapper
from nar_scale.objectives.objective import Objective, Samples, evaluating, without_padding

FilterChoice = str | LogitFilter | Sequence[LogitFilter] | None


class LeftToRightGenerator(Objective):
    """Generates left to right with a causal network.

    Attributes:
        net: the network.
        max_seq_len: of the network.
        pad_value: the token that follows an end token.
    """

    net: TransformerWrapper
    max_seq_len: int
    pad_value: int
    samples_padded = True

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor | list[Tensor],
        seq_len: int | Tensor,
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
        callback: StepCallback | None = None,
        draft: nn.Module | Literal["prompt_lookup"] | None = None,
        draft_tokens: int = 4,
        return_network_calls: bool = False,
        **conditions: Tensor,
    ) -> Any:
        """Continue prompts by up to `seq_len` tokens.

        Args:
            prompts: int64 `[batch, n]` or `[n]`, or a list of `[n_i]` of different lengths.
            seq_len: tokens to generate for each prompt, at most; or int64 `[batch]`, a number for each.
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
            compile: run steps through `torch.compile`, on GPUs as CUDA graphs; the first call for a number of prompts
                and a length, rounded up to a multiple of 64, then takes up to minutes.
            callback: is called after each step with what has been generated, int64 `[batch, n]`, and its number from 1.
            draft: a smaller model with the same vocabulary, or `prompt_lookup` for what followed the last tokens where
                they stood before; drafts are verified in one call, which leaves the distribution as it is, and with
                `prompt_lookup` the tokens too (arXiv:2211.17192).
            draft_tokens: tokens of a draft.
            return_network_calls: also return the network calls in which each sequence grew.
            conditions: further arguments of the network, with a row for each prompt: `context` and `context_mask`, and
                `prepend_embeds` as in `forward`, which are not returned.

        Returns:
            int64 `[batch, n + seq_len]`, without the prompt `[batch, seq_len]`, or shorter; and the calls, `[batch]`.

        Raises:
            ValueError: prompts, lengths, a temperature or conditions that do not fit, or options that exclude others.
        """
        amateurs = _pair(amateur_model, contrastive_decode_kwargs)
        _check_combination(compile, cache_kv, draft is not None, bool(amateurs))
        given = self._prompts(prompts, prompt_lens)
        longest, seq_lens = limits_of(seq_len, len(given.tokens), compile)
        check_sampling(longest, temperature, eos_token, self.net.num_tokens)
        settings: dict[str, Any] = {
            "noise": noise or Noise.draw(len(given.tokens), given.tokens.device),
            "temperature": temperature,
            "filters": () if amateurs else chosen_filters(filter_logits_fn, filter_kwargs),
            "seq_lens": seq_lens,
            "eos_token": eos_token,
            "pad_value": self.pad_value,
            "conditions": conditions,
            "callback": callback,
        }
        if draft is None:
            settings |= {"amateurs": amateurs, "use_cache": cache_kv, "compile": compile}
            with evaluating(self, *(amateur for amateur, _ in amateurs)):
                generated = continue_prompts(self.net, given, longest, **settings)
            calls = _lengths(generated, eos_token)
        else:
            generated, calls = self._from_drafts(given, longest, draft, draft_tokens, settings)
        if return_prompt and isinstance(prompts, Tensor) and prompt_lens is None:
            generated = torch.cat((given.tokens, generated), dim=1)
        generated, calls = (generated[0], calls[0]) if _is_single(prompts) else (generated, calls)
        return (generated, calls) if return_network_calls else generated

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
        check_sampling(seq_len, temperature, eos_token, self.net.num_tokens)
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
        lengths: Tensor | None = None,
        classes: Tensor | None = None,
        end_token: int | None = None,
        callback: StepCallback | None = None,
    ) -> Samples:
        """Continue prompts; see `Objective`."""
        if not isinstance(decoding, LeftToRightDecoding):
            raise ConfigError(f"the sampler {decoding.sampler} is not for autoregressive models")
        drafts: dict[str, Any] = {}
        if decoding.prompt_lookup:
            drafts = {"draft": "prompt_lookup", "draft_tokens": decoding.prompt_lookup}
        room = (length or self.max_seq_len) - (given.shape[1] if lengths is None else lengths)
        generated, calls = self.generate(
            given,
            room,
            prompt_lens=lengths,
            eos_token=end_token,
            temperature=decoding.temperature,
            filter_logits_fn=eligible(decoding.top_k, decoding.top_p),
            return_prompt=False,
            noise=noise,
            return_network_calls=True,
            callback=callback,
            **drafts,
        )
        tokens = without_padding(generated, _lengths(generated, end_token).clamp(max=room))
        ended = [row[:-1] if row[-1:] == [end_token] else row for row in tokens]
        return Samples(ended, calls.clamp(max=room).tolist())

    def _prompts(self, prompts: Tensor | list[Tensor], lengths: Tensor | None) -> Prompts:
        excluded = getattr(self.net.to_logits, "excluded", None)  # which a head of the caller's need not have
        return Prompts.of(prompts, lengths, self.net.num_tokens, self.net.token_emb.weight.device, excluded)

    def _from_drafts(
        self, given: Prompts, seq_len: int, draft: nn.Module | str, draft_tokens: int, settings: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        net = self._draft_model(draft, draft_tokens)
        with evaluating(self, *([] if net is None else [net])):
            return speculate(self.net, given, seq_len, draft=net, draft_tokens=draft_tokens, **settings)

    def _draft_model(self, draft: nn.Module | str, draft_tokens: int) -> TransformerWrapper | None:
        if draft_tokens < 1:
            raise ValueError(f"draft_tokens cannot be {draft_tokens}; give at least 1")
        if draft == "prompt_lookup":
            return None
        if isinstance(draft, str):
            raise ValueError(f"unknown draft {draft!r}; give a model or prompt_lookup")
        net = _net(draft)
        if net.num_tokens != self.net.num_tokens:
            raise ValueError(
                f"the draft has {net.num_tokens} tokens and the model {self.net.num_tokens}; give one with the same "
                "vocabulary"
            )
        return net


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


def limits_of(seq_len: int | Tensor, batch: int, compile: bool = False) -> tuple[int, Tensor | None]:
    """The tokens to generate at most, and int64 `[batch]` for each prompt if they differ.

    Args:
        seq_len: a number for all prompts, or int64 `[batch]`.
        batch: prompts.
        compile: whether steps are compiled, which are the same for all prompts.

    Raises:
        ValueError: `seq_len` is not one for each prompt, or there is one for each of compiled steps.
    """
    if not isinstance(seq_len, Tensor):
        return seq_len, None
    if seq_len.shape != (batch,) or bool((seq_len < 0).any()):
        raise ValueError(f"seq_len {seq_len.tolist()} is not a number of tokens for each of {batch} prompts")
    if compile:
        raise ValueError(
            "compiled steps generate as many tokens for each prompt; give one seq_len or leave compile out"
        )
    return int(seq_len.max()), seq_len


def check_sampling(seq_len: int, temperature: float, end_token: int | None, num_tokens: int) -> None:
    """Refuse what no sequence can be sampled with.

    Raises:
        ValueError: a negative number of tokens, a temperature that is negative or not finite, or an end token that is
            not in the vocabulary.
    """
    if seq_len < 0:
        raise ValueError(f"seq_len {seq_len} is negative; give the number of tokens to generate")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature cannot be {temperature}; give 0 for the most probable tokens, or more")
    if end_token is not None and not 0 <= end_token < num_tokens:
        raise ValueError(f"eos_token {end_token} is outside the vocabulary 0..{num_tokens - 1}")


def _lengths(generated: Tensor, end_token: int | None) -> Tensor:
    """Tokens of each sequence up to its first end token, int64 `[batch]`."""
    ends = (generated == (-1 if end_token is None else end_token)).long()
    return (ends.cumsum(dim=1) - ends == 0).sum(dim=1)


def _check_combination(compile: bool, cache_kv: bool, drafts: bool, amateurs: bool) -> None:
    if compile and not cache_kv:
        raise ValueError("compiled steps keep keys and values; leave cache_kv on or compile off")
    if drafts and (amateurs or compile or not cache_kv):
        raise ValueError("draft goes without amateur_model and compile, and with cache_kv; leave one out")


def _is_single(prompts: Tensor | list[Tensor]) -> bool:
    return isinstance(prompts, Tensor) and prompts.ndim == 1


def _net(model: nn.Module) -> TransformerWrapper:
    return model.net if isinstance(model, LeftToRightGenerator) else cast(TransformerWrapper, model)


def _pair(
    models: nn.Module | Sequence[nn.Module] | None, settings: dict[str, float] | Sequence[dict[str, float]] | None
) -> list[tuple[TransformerWrapper, dict[str, float]]]:
    if models is None:
        return []
    models = [models] if isinstance(models, nn.Module) else list(models)
    settings = [settings or {}] * len(models) if settings is None or isinstance(settings, dict) else list(settings)
    if len(models) != len(settings):
        raise ValueError(f"{len(models)} amateur models but {len(settings)} contrastive_decode_kwargs")
    return [(_net(model), each) for model, each in zip(models, settings)]
