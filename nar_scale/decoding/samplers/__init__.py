"""The samplers of iterative unmasking: policies that decide which tokens a network call reveals."""

from nar_scale.decoding.samplers.build import make_sampler
from nar_scale.decoding.samplers.sampler import Call, Sampler

__all__ = ["Call", "Sampler", "make_sampler"]
