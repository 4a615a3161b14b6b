"""How samples are drawn: what is asked for, and what a model carries with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nar_scale.decoding.unmask import Sampler
from nar_scale.errors import UserError


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are drawn, from any kind of model.

    Attributes:
        temperature: divides the logits, at least 0; with the `confidence` sampler it falls linearly to 0.
        sampler: `confidence` or `random`, see `unmask`; only non-autoregressive models look at it.
        steps: network calls for a sequence, at least 1, or None for the model's own number; only non-autoregressive
            models look at it.
        top_k: fraction of the vocabulary, in (0, 1], that is eligible at each position, or None for the default of
            the model's `generate`.
        length: tokens of a sequence with its prompt, at least 1, or None for the longest that the model can make.
        seed: of all randomness, an integer of 64 bits.
        guidance: scale of classifier-free guidance, at least 0, or None for the model's own; only non-autoregressive
            models look at it.

    Raises:
        UserError: a number out of range; the message names the option of `launcher/generate.py`.
    """

    temperature: float = 1.0
    sampler: Sampler = "confidence"
    steps: int | None = None
    top_k: float | None = 1.0
    length: int | None = None
    seed: int = 0
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name, valid in (
            ("temperature", self.temperature >= 0),
            ("steps", self.steps is None or self.steps >= 1),
            ("top_k", self.top_k is None or 0 < self.top_k <= 1),
            ("length", self.length is None or self.length >= 1),
            ("seed", -(2**63) <= self.seed < 2**63),
            ("guidance", self.guidance is None or self.guidance >= 0),
        ):
            if not valid:
                raise UserError(f"--{name.replace('_', '-')} cannot be {getattr(self, name)}")

    def as_dict(self) -> dict[str, Any]:
        """The options by name."""
        return asdict(self)


@dataclass(frozen=True)
class DecodeManifest:
    """How samples are drawn from a model by default: recorded in its checkpoint, so that a score can be reproduced.

    Attributes:
        sampler: `confidence`, `critic` or `left_to_right`.
        steps: network calls for a sequence at most; None for one call a token.
        schedule: of the masked fraction; None for a model that generates left to right.
        temperature: of the first step.
        mask_id: the mask token; None for a model that generates left to right.
        end_token: the token that ends a document; None if it is unknown.
        block_size: tokens of a block of block diffusion; None for other models.
        guidance_scale: of classifier-free guidance; 1 for none.
    """

    sampler: str
    steps: int | None
    schedule: str | None
    temperature: float
    mask_id: int | None
    end_token: int | None
    block_size: int | None = None
    guidance_scale: float = 1.0
