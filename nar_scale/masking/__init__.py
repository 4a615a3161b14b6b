"""Pure functions of masking: schedules and their loss weights, counter-based noise, masks."""

from nar_scale.masking.masks import MaskedBatch, Masking, choose_masked, mask_tokens, masked_counts, random_subset
from nar_scale.masking.noise import Noise, hash_counters
from nar_scale.masking.schedules import Schedule, get_schedule

__all__ = [
    "MaskedBatch",
    "Masking",
    "Noise",
    "Schedule",
    "choose_masked",
    "get_schedule",
    "hash_counters",
    "mask_tokens",
    "masked_counts",
    "random_subset",
]
