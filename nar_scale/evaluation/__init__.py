"""Evaluation: likelihoods and likelihood bounds on held-out data."""

from nar_scale.evaluation.dataset import evaluate_dataset
from nar_scale.evaluation.likelihood import Likelihood, evaluate_likelihood

__all__ = ["Likelihood", "evaluate_dataset", "evaluate_likelihood"]
