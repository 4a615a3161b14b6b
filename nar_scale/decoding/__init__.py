"""Decoding: logit filters, left-to-right sampling and beam search, iterative unmasking."""

from nar_scale.decoding.filters import FILTERS, contrastive, eligible, get_filter, min_p, sample, top_a, top_k, top_p
from nar_scale.decoding.left_to_right import continue_prompts, search_beams
from nar_scale.decoding.options import DecodeManifest, SamplingOptions
from nar_scale.decoding.predictor import Predictor
from nar_scale.decoding.sequences import Prompts, Sequences
from nar_scale.decoding.speculative import (
    Continued,
    VerificationNoise,
    Verified,
    propose,
    self_speculate,
    speculate,
    verify,
)
from nar_scale.decoding.unmask import Sampler, Unmasked, unmask

__all__ = [
    "FILTERS",
    "Continued",
    "DecodeManifest",
    "Predictor",
    "Prompts",
    "Sampler",
    "SamplingOptions",
    "Sequences",
    "Unmasked",
    "VerificationNoise",
    "Verified",
    "continue_prompts",
    "contrastive",
    "eligible",
    "get_filter",
    "min_p",
    "propose",
    "sample",
    "search_beams",
    "self_speculate",
    "speculate",
    "top_a",
    "top_k",
    "top_p",
    "unmask",
    "verify",
]
