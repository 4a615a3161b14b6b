"""From a sampler's settings to the sampler."""

from __future__ import annotations

from nar_scale.config import (
    ConfidenceDecoding,
    EntropyBoundDecoding,
    EntropyDecoding,
    FactorDecoding,
    FirstHittingDecoding,
    MarginDecoding,
    RandomDecoding,
    RemaskDecoding,
    SamplerConfig,
    ThresholdDecoding,
    WinoDecoding,
)
from nar_scale.decoding.samplers.adaptive import EntropyBound, Factor, Threshold
from nar_scale.decoding.samplers.first_hitting import FirstHitting
from nar_scale.decoding.samplers.remasking import Remask, Wino
from nar_scale.decoding.samplers.sampler import Sampler
from nar_scale.decoding.samplers.scheduled import Confidence, Entropy, Margin, Random
from nar_scale.errors import ConfigError
from nar_scale.masking import Schedule


def make_sampler(
    config: SamplerConfig,
    schedule: Schedule,
    *,
    critic: bool = False,
    critic_noise: float = 1.0,
    can_mask_revealed: bool = False,
) -> Sampler:
    """The sampler with these settings.

    Args:
        config: sampler and settings.
        schedule: the masked fraction that remains after each of the steps.
        critic: whether a critic judges tokens, for the samplers that use one.
        critic_noise: scale of the Gumbel noise on its logits, with `confidence`.
        can_mask_revealed: whether `confidence` and `random` may mask tokens again that they have revealed.

    Raises:
        ConfigError: a sampler that does not fill in masks.
    """
    match config:
        case ConfidenceDecoding():
            noise = critic_noise if critic else None
            return Confidence(schedule, config.steps, critic_noise=noise, can_mask_revealed=can_mask_revealed)
        case RandomDecoding():
            return Random(schedule, config.steps, can_mask_revealed=can_mask_revealed)
        case EntropyDecoding():
            return Entropy(schedule, config.steps)
        case MarginDecoding():
            return Margin(schedule, config.steps)
        case FirstHittingDecoding():
            return FirstHitting(schedule, config.steps)
        case ThresholdDecoding():
            return Threshold(schedule, config.steps, bound=config.threshold)
        case FactorDecoding():
            return Factor(schedule, config.steps, bound=config.factor)
        case EntropyBoundDecoding():
            return EntropyBound(schedule, config.steps, bound=config.entropy_bound)
        case RemaskDecoding():
            rule, amount = config.remask_rule, config.remask_amount
            return Remask(schedule, config.steps, rule=rule, amount=amount, critic=critic)
        case WinoDecoding():
            thresholds = {"reveal": config.reveal_threshold, "keep": config.keep_threshold}
            return Wino(schedule, config.steps, **thresholds, critic=critic)
    raise ConfigError(f"the sampler {config.sampler} is not for non-autoregressive models")
