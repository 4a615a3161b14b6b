"""Decoding: logit filters, left-to-right sampling and beam search, iterative unmasking."""

from nar_scale.decoding.filters import FILTERS, contrastive, get_filter, min_p, sample, top_a, top_k, top_p
from nar_scale.decoding.left_to_right import Prompts, continue_prompts, search_beams
from nar_scale.decoding.options import DecodeManifest, SamplingOptions
from nar_scale.decoding.predictor import Predictor
from nar_scale.decoding.self_speculation import Continued, Distribution, speculate
from nar_scale.decoding.speculative import Verified, verify
from nar_scale.decoding.unmask import Sampler, Unmasked, unmask

__all__ = [
    "FILTERS",
    "Continued",
    "DecodeManifest",
    "Distribution",
    "Predictor",
    "Prompts",
    "Sampler",
    "SamplingOptions",
    "Unmasked",
    "Verified",
    "continue_prompts",
    "contrastive",
    "get_filter",
    "min_p",
    "sample",
    "search_beams",
    "speculate",
    "top_a",
    "top_k",
    "top_p",
    "unmask",
    "verify",
]
