"""A loaded model that generates text by itself: prompts in, texts out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import LoadedModel, WeightKind, load_consolidated
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.generation.encoding import assign_class
from nar_scale.generation.requests import Request, requests_for
from nar_scale.generation.sampling import Sample, generate_samples


@dataclass(frozen=True)
class GenerativeModel(LoadedModel):
    """A model of a consolidated checkpoint, of any kind, that generates.

    What is generated is what a worker (`nar-scale generate`) writes for the same requests, seed and settings. It does
    not depend on the batch size.
    """

    def __repr__(self) -> str:
        parameters = sum(weight.numel() for weight in self.wrapper.parameters())
        return (
            f"<nar_scale model: {self.config.objective.kind}, {parameters:,} parameters, {self.wrapper.max_seq_len} "
            f"tokens, sampler {self.info.decode.decoding.sampler}>"
        )

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        num_samples: int | None = None,
        classes: int | Sequence[int] | None = None,
        length: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        sampler: str | None = None,
        temperature: float | None = None,
        **settings: Any,
    ) -> str | list[str]:
        """Generate a text or, for a list of prompts or classes or with `num_samples`, a list of texts.

        Args:
            prompts: texts to continue or, of a model that fills in masks, texts with gaps: `<mask>` stands for one
                token, `<mask:8>` for eight. None for samples from scratch.
            num_samples: how many samples from scratch.
            classes: of a model that is conditional on a class: one for all, or one for each; from scratch, by default
                the classes in turn.
            length: tokens of a sequence with its prompt, or None for as many as the model can make. A text with gaps is
                as long as it is.
            seed: of all randomness; a sample is a function of it and of the sample's place in the list.
            batch_size: sequences in a forward pass, at most.
            sampler: by name, see docs/decoding.md; None for that of the checkpoint.
            temperature: divides the logits; None for that of the checkpoint.
            settings: others of the sampler by name, such as `top_k`, `top_p`, `steps`, `guidance`, `stop` or
                `threshold`, in place of those of the checkpoint.

        Returns:
            the texts, with their prompts.

        Raises:
            UserError: the model has no tokenizer, or an argument does not fit it.
        """
        if self.tokenizer is None:
            raise UserError(f"this model makes {self._tokens_are()}, not text: its run had no data.tokenizer")
        samples = self.samples(
            prompts,
            num_samples=num_samples,
            classes=classes,
            length=length,
            seed=seed,
            batch_size=batch_size,
            sampler=sampler,
            temperature=temperature,
            **settings,
        )
        texts = [self._whole_text(sample) for sample in samples]
        several = num_samples is not None or isinstance(classes, Sequence)
        return texts[0] if isinstance(prompts, str) or (prompts is None and not several) else texts

    def samples(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        num_samples: int | None = None,
        classes: int | Sequence[int] | None = None,
        length: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        sampler: str | None = None,
        temperature: float | None = None,
        **settings: Any,
    ) -> list[Sample]:
        """What `generate` generates, with token ids and the number of network calls; takes the same arguments.

        This is also for models without a tokenizer, such as those of images, which take no prompts here; give token ids
        to `wrapper.generate`.

        Raises:
            UserError: an argument does not fit the model.
        """
        if batch_size < 1:
            raise UserError(f"batch_size cannot be {batch_size}; give at least 1")
        stop = settings.get("stop")
        if isinstance(stop, str):
            settings["stop"] = (stop,)
        if temperature is not None:
            settings["temperature"] = temperature
        options = SamplingOptions(sampler=sampler, sampler_options=settings, length=length, seed=seed)
        requests = self._requests(prompts, num_samples, classes)
        return list(generate_samples(self, requests, options, batch_size))

    def _requests(
        self, prompts: str | Sequence[str] | None, num_samples: int | None, classes: int | Sequence[int] | None
    ) -> list[Request]:
        if prompts is None:
            given = classes if isinstance(classes, Sequence) else [classes]
            requests = [Request(number) for number in range(len(given) if num_samples is None else num_samples)]
        elif num_samples is not None:
            raise UserError("num_samples counts samples from scratch; for several of a prompt, give it several times")
        else:
            several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
            texts: list[Any] = list(prompts) if several else [prompts]
            if not all(isinstance(each, str) for each in texts):
                raise UserError("prompts are a text or a list of texts; wrapper.generate takes token ids")
            if self.tokenizer is None:
                raise UserError(
                    f"this model makes {self._tokens_are()} and takes no text prompts; wrapper.generate takes token ids"
                )
            if self.wrapper.num_classes is not None and classes is None:
                raise UserError(f"the model needs a class; give classes, of 0..{self.wrapper.num_classes - 1}")
            requests = requests_for(texts)
        if not requests:
            raise UserError("there is nothing to generate; give at least one prompt, or num_samples of at least 1")
        chosen = list(classes) if isinstance(classes, Sequence) else [classes] * len(requests)
        if len(chosen) != len(requests):
            raise UserError(f"{len(chosen)} classes do not fit {len(requests)} samples; give one for all, or for each")
        return [
            assign_class(Request(one.number, one.prompt, one.text, class_id), self.wrapper.num_classes)
            for one, class_id in zip(requests, chosen)
        ]

    def _whole_text(self, sample: Sample) -> str:
        text = sample.text or ""
        return text if self.wrapper.fills_gaps else (sample.request.prompt or "") + text

    def _tokens_are(self) -> str:
        if self.config.logging.image_shape is not None:
            return "images (model.samples() gives their pixels, `nar-scale generate --output DIR` draws them)"
        return "token ids (model.samples() gives them)"


def load(
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    verify: bool = True,
    weights: WeightKind = "model",
) -> GenerativeModel:
    """Load a consolidated checkpoint; arguments and errors as of `nar_scale.checkpoint.load_consolidated`.

    >>> model = load("exported/quickstart_nar")
    >>> model.generate("def main(")
    >>> model.generate("for i in <mask:8>:")
    """
    model = load_consolidated(directory, device, dtype, verify, weights)
    return GenerativeModel(model.wrapper, model.config, model.info, model.tokenizer)
