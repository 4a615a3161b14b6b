"""Decoding: logit filters, left-to-right sampling and beam search, iterative demasking."""

from nar_scale.decoding.demask import Demasked, Sampler, demask
from nar_scale.decoding.filters import FILTERS, contrastive, get_filter, min_p, sample, top_a, top_k, top_p
from nar_scale.decoding.left_to_right import Prompts, continue_prompts, search_beams
from nar_scale.decoding.predictor import Predictor

__all__ = [
    "FILTERS",
    "Demasked",
    "Predictor",
    "Prompts",
    "Sampler",
    "continue_prompts",
    "contrastive",
    "demask",
    "get_filter",
    "min_p",
    "sample",
    "search_beams",
    "top_a",
    "top_k",
    "top_p",
]
