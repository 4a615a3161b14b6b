"""Decoding: logit filters, left-to-right sampling and beam search, iterative unmasking."""

from nar_scale.decoding.filters import FILTERS, contrastive, get_filter, min_p, sample, top_a, top_k, top_p
from nar_scale.decoding.left_to_right import Prompts, continue_prompts, search_beams
from nar_scale.decoding.options import DecodeManifest, SamplingOptions
from nar_scale.decoding.predictor import Predictor
from nar_scale.decoding.unmask import Sampler, Unmasked, unmask

__all__ = [
    "FILTERS",
    "DecodeManifest",
    "Predictor",
    "Prompts",
    "Sampler",
    "SamplingOptions",
    "Unmasked",
    "continue_prompts",
    "contrastive",
    "get_filter",
    "min_p",
    "sample",
    "search_beams",
    "top_a",
    "top_k",
    "top_p",
    "unmask",
]
