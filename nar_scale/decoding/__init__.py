"""Decoding: logit filters, left-to-right sampling and beam search, iterative unmasking."""

from nar_scale.decoding.categorical import Filters
from nar_scale.decoding.filters import FILTERS, contrastive, eligible, get_filter, min_p, sample, top_a, top_k, top_p
from nar_scale.decoding.left_to_right import continue_prompts, search_beams
from nar_scale.decoding.options import DecodeManifest, SamplingOptions, StepCallback, resolve_decoding
from nar_scale.decoding.predictor import Predictor
from nar_scale.decoding.samplers import Sampler, make_sampler
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
from nar_scale.decoding.unmask import Network, Unmasked, unmask

__all__ = [
    "FILTERS",
    "Continued",
    "DecodeManifest",
    "Filters",
    "Network",
    "Predictor",
    "Prompts",
    "Sampler",
    "SamplingOptions",
    "Sequences",
    "StepCallback",
    "Unmasked",
    "VerificationNoise",
    "Verified",
    "continue_prompts",
    "contrastive",
    "eligible",
    "get_filter",
    "make_sampler",
    "min_p",
    "propose",
    "resolve_decoding",
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
