"""Objectives: the autoregressive and non-autoregressive wrappers, and how one is built from a config."""

from nar_scale.objectives.autoregressive import AutoregressiveWrapper
from nar_scale.objectives.block_diffusion import BlockDiffusionWrapper
from nar_scale.objectives.build import build_wrapper
from nar_scale.objectives.hybrid import HybridWrapper
from nar_scale.objectives.non_autoregressive import NonAutoregressiveWrapper
from nar_scale.objectives.objective import Objective, Samples, evaluating
from nar_scale.objectives.terms import HybridLosses, Losses, LossTerms

__all__ = [
    "AutoregressiveWrapper",
    "BlockDiffusionWrapper",
    "HybridLosses",
    "HybridWrapper",
    "LossTerms",
    "Losses",
    "NonAutoregressiveWrapper",
    "Objective",
    "Samples",
    "build_wrapper",
    "evaluating",
]
