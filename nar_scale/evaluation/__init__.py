"""Evaluation: likelihoods and likelihood bounds on validation data, and pictures of samples."""

from nar_scale.evaluation.dataset import evaluate_dataset
from nar_scale.evaluation.images import encode_png, image_grid
from nar_scale.evaluation.likelihood import Likelihood, evaluate_likelihood

__all__ = ["Likelihood", "encode_png", "evaluate_dataset", "evaluate_likelihood", "image_grid"]
