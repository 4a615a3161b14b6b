"""Requests: what is to be generated, from scratch or from prompts, in memory or in files of any size."""

from nar_scale.generation.requests.prompt_file import PromptFile
from nar_scale.generation.requests.prompt_shards import PromptShards
from nar_scale.generation.requests.request import (
    STANDARD_INPUT,
    Request,
    read_requests,
    requests_for,
    samples_from_scratch,
)
from nar_scale.generation.requests.sources import RequestList, RequestSource, SamplesFromScratch, open_requests

__all__ = [
    "STANDARD_INPUT",
    "PromptFile",
    "PromptShards",
    "Request",
    "RequestList",
    "RequestSource",
    "SamplesFromScratch",
    "open_requests",
    "read_requests",
    "requests_for",
    "samples_from_scratch",
]
