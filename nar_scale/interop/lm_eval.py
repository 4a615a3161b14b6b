"""Models of this library in EleutherAI's lm-evaluation-harness (the extra `lm-eval`)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nar_scale.checkpoint import LoadedModel, load_consolidated
from nar_scale.errors import UserError
from nar_scale.evaluation import ConditionalScore, score_continuations
from nar_scale.generation import Request, Sample, SamplingOptions, generate_samples
from nar_scale.progress import progress_bar

MAX_NEW_TOKENS = 256
_HANDLED = {"until", "max_gen_toks", "do_sample", "temperature"}
_logger = logging.getLogger(__name__)


@register_model("nar_scale")
class NarScaleLM(TemplateLM):
    """A consolidated checkpoint as a model of lm-evaluation-harness; of any kind.

    Log-likelihoods are those of `score_continuations`: exact left to right, and otherwise estimates of a lower bound.
    Texts are generated as the checkpoint's own decoding does, at temperature 0 unless a task asks for another.

    Args:
        checkpoint: directory of the consolidated checkpoint, or a loaded one.
        device: cpu or cuda.
        weights: `model` for the weights of the last step, `ema` for their moving average.
        batch_size: sequences in a forward pass.
        mask_samples: sets of masked tokens for each continuation, at most; of models that fill in masks.
        seed: of the masks and of generation.
        max_new_tokens: tokens that are generated, at most, for a task that does not say.
        options: what the harness passes to all models and this one has no use for; ignored.

    Attributes:
        scores: of all log-likelihood requests and of all windows of rolling ones so far, in order.

    Raises:
        UserError: the checkpoint cannot be loaded, or has no tokenizer.
    """

    def __init__(
        self,
        checkpoint: str | LoadedModel,
        device: str = "cpu",
        weights: str = "model",
        batch_size: int | str = 64,
        mask_samples: int | str = 128,
        seed: int | str = 0,
        max_new_tokens: int | str = MAX_NEW_TOKENS,
        **options: Any,
    ):
        super().__init__()
        if isinstance(checkpoint, str):
            checkpoint = load_consolidated(checkpoint, device, weights=cast(Any, weights))
        if checkpoint.tokenizer is None:
            raise UserError("the checkpoint has no tokenizer, so it cannot score or write text")
        if options:
            _logger.warning("these options have no meaning for this model: %s", ", ".join(sorted(options)))
        self._model, self._tokens = checkpoint, checkpoint.tokenizer
        self._batch_size, self._mask_samples, self._seed = int(batch_size), int(mask_samples), int(seed)
        self._max_new_tokens = int(max_new_tokens)
        self.scores: list[ConditionalScore] = []

    @property
    def eot_token_id(self) -> int:
        """The id that ends a document, after which one begins."""
        return self._tokens.end_token

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's caches of requests apart."""
        return self._tokens.fingerprint

    @property
    def estimator(self) -> str:
        """What log-likelihoods are estimated with, in words."""
        if self._model.wrapper.net.causal:
            return "exact NLL, left to right"
        sets = f"{self._mask_samples} stratified mask counts, or all sets of masks if they are no more"
        return f"NELBO, exact-count masking, {sets}, seed {self._seed}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The token ids of a text; special tokens are never added."""
        ids: list[int] = self._tokens.encode(string.encode()).tolist()
        return ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, in nats, and whether it is the most probable one."""
        # the harness shows a bar of its own wherever it writes to
        return super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in nats, cut into windows that the model takes.

        Each text begins after an end token. Each further window sees the last token of the one before, and the last
        window as many as fit.
        """
        longest = self._model.wrapper.max_seq_len - (0 if self._model.wrapper.net.causal else 1)
        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            rolling = get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, longest, context_len=1)
            found = [make_disjoint_window(window) for window in rolling]
            windows += found
            counts.append(len(found))
        scores = iter(self._score(windows, disable_tqdm))
        totals = [sum(next(scores).log_likelihood for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context up to one of its stops, the end token, or the number of tokens that it asks for."""
        prompts = [self._prompt(number, request) for number, request in enumerate(requests)]
        order = sorted(range(len(requests)), key=lambda number: prompts[number][1])
        results: dict[int, str] = {}
        bar = progress_bar("generate", len(order), "request", not disable_tqdm)
        for (length, temperature), same in groupby(order, key=lambda number: prompts[number][1]):
            numbers = list(same)
            options = SamplingOptions(temperature=temperature, length=length, seed=self._seed)
            given = [prompts[number][0] for number in numbers]
            for sample in generate_samples(self._model, given, options, self._batch_size):
                number = sample.request.number
                results[number] = self._cut(sample, requests[number].args[1])
                self.cache_hook.add_partial("generate_until", requests[number].args, results[number])
                bar.update()
        bar.close()
        return [results[number] for number in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        results = [(score.log_likelihood, score.greedy) for score in self._score(pairs, disable_tqdm)]
        for (texts, _, _), result in zip(requests, results):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], disable_tqdm: bool) -> list[ConditionalScore]:
        scores: list[ConditionalScore] = []
        bar = progress_bar("score", len(pairs), "request", not disable_tqdm)
        for start in range(0, len(pairs), self._batch_size):
            some = pairs[start : start + self._batch_size]
            scores += score_continuations(self._model.wrapper, some, self._mask_samples, self._seed, self._batch_size)
            bar.update(len(some))
        bar.close()
        self.scores += scores
        return scores

    def _prompt(self, number: int, request: Instance) -> tuple[Request, tuple[int, float]]:
        """A request with the length of its sequence and its temperature; the end of a context that is too long."""
        context, settings = request.args
        unknown = sorted(set(settings) - _HANDLED)
        if unknown:
            _logger.warning("the task's settings %s of generation are not followed", ", ".join(unknown))
        longest = self._model.wrapper.max_seq_len
        new = min(int(settings.get("max_gen_toks", self._max_new_tokens)), longest - 1)
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        ids = self.tok_encode(context)
        while len(ids) > longest - new:  # letters may be cut apart, and are then encoded with other tokens
            context = self._tokens.decode(ids[len(ids) - (longest - new) :]).lstrip("\ufffd")
            ids = self.tok_encode(context)
        return Request(number, prompt=context), (max(len(ids), 1) + new, temperature)

    def _cut(self, sample: Sample, settings: dict[str, Any]) -> str:
        """The text that follows the prompt, up to the end token or the first stop."""
        tokens = sample.tokens
        if self._model.wrapper.mask_id is not None:
            tokens = tokens[len(self.tok_encode(sample.request.prompt or "")) :]
        if self.eot_token_id in tokens:
            tokens = tokens[: tokens.index(self.eot_token_id)]
        text = self._tokens.decode(tokens)
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop, 1)[0] if stop else text
        return text
