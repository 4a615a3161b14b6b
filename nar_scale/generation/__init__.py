"""Generation from consolidated checkpoints by standalone workers, without DeepSpeed and webdataset."""

from nar_scale.decoding import SamplingOptions
from nar_scale.generation.requests import Request, assign_classes, read_requests, samples_from_scratch
from nar_scale.generation.sampling import Sample, generate_samples
from nar_scale.generation.worker import generate

__all__ = [
    "Request",
    "Sample",
    "SamplingOptions",
    "assign_classes",
    "generate",
    "generate_samples",
    "read_requests",
    "samples_from_scratch",
]
