"""Generation from consolidated checkpoints by standalone workers, without DeepSpeed and webdataset."""

from nar_scale.decoding import SamplingOptions
from nar_scale.generation.direct import generate_directly
from nar_scale.generation.encoding import check_requests
from nar_scale.generation.generative_model import GenerativeModel, load
from nar_scale.generation.live_text import LiveText
from nar_scale.generation.requests import (
    Request,
    RequestSource,
    SamplesFromScratch,
    open_requests,
    read_requests,
    requests_for,
    samples_from_scratch,
)
from nar_scale.generation.sampling import Sample, generate_samples
from nar_scale.generation.worker import generate, read_results

__all__ = [
    "GenerativeModel",
    "LiveText",
    "Request",
    "RequestSource",
    "Sample",
    "SamplesFromScratch",
    "SamplingOptions",
    "check_requests",
    "generate",
    "generate_directly",
    "generate_samples",
    "load",
    "open_requests",
    "read_requests",
    "read_results",
    "requests_for",
    "samples_from_scratch",
]
