"""The prediction of masked tokens and generation with it: what non-autoregressive objectives have in common."""

from nar_scale.objectives.denoising.blocks import first_end, unmask_blocks
from nar_scale.objectives.denoising.critic import SelfCritic, critic_loss, draw_answers
from nar_scale.objectives.denoising.denoiser import Denoiser
from nar_scale.objectives.denoising.guided_network import GuidedNetwork
from nar_scale.objectives.denoising.unmasker import Unmasker

__all__ = [
    "Denoiser",
    "GuidedNetwork",
    "SelfCritic",
    "Unmasker",
    "critic_loss",
    "draw_answers",
    "first_end",
    "unmask_blocks",
]
