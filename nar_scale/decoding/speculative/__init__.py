"""Speculative decoding: several tokens in a call of the network, with the distribution of one a call."""

from nar_scale.decoding.speculative.continuation import Continued, speculate
from nar_scale.decoding.speculative.drafts import Draft, Drafter, ModelDraft, PromptLookup
from nar_scale.decoding.speculative.self_speculation import self_speculate
from nar_scale.decoding.speculative.verification import VerificationNoise, Verified, match, propose, verify

__all__ = [
    "Continued",
    "Draft",
    "Drafter",
    "ModelDraft",
    "PromptLookup",
    "VerificationNoise",
    "Verified",
    "match",
    "propose",
    "self_speculate",
    "speculate",
    "verify",
]
