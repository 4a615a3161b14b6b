"""Objectives: the autoregressive and non-autoregressive wrappers, and how to build one from a config."""

from nar_scale.objectives.autoregressive import AutoregressiveWrapper
from nar_scale.objectives.block_diffusion import BlockDiffusionWrapper
from nar_scale.objectives.build import Wrapper, build_wrapper
from nar_scale.objectives.non_autoregressive import Losses, NonAutoregressiveWrapper
from nar_scale.objectives.terms import LossTerms, Objective

__all__ = [
    "AutoregressiveWrapper",
    "BlockDiffusionWrapper",
    "LossTerms",
    "Losses",
    "NonAutoregressiveWrapper",
    "Objective",
    "Wrapper",
    "build_wrapper",
]
