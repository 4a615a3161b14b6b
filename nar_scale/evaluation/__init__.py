"""Evaluation: likelihoods and likelihood bounds, statistics of generated text, and pictures of samples."""

from nar_scale.evaluation.conditional import ConditionalScore, score_continuations
from nar_scale.evaluation.dataset import evaluate_dataset, evaluate_reencoded
from nar_scale.evaluation.images import encode_png, image_grid
from nar_scale.evaluation.known_words import find_words, known_share
from nar_scale.evaluation.likelihood import Likelihood, evaluate_likelihood
from nar_scale.evaluation.reference import CheckpointReference, Reference, TransformersReference
from nar_scale.evaluation.sources import pool_likelihoods
from nar_scale.evaluation.split import Split
from nar_scale.evaluation.text_statistics import TextStatistics, count_text

__all__ = [
    "CheckpointReference",
    "ConditionalScore",
    "Likelihood",
    "Reference",
    "Split",
    "TextStatistics",
    "TransformersReference",
    "count_text",
    "encode_png",
    "evaluate_dataset",
    "evaluate_likelihood",
    "evaluate_reencoded",
    "find_words",
    "image_grid",
    "known_share",
    "pool_likelihoods",
    "score_continuations",
]
