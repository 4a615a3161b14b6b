"""Reports about checkpoints: likelihoods and samples, measured and written as JSON, Markdown and a picture.

Above generation, since samples are drawn here, and therefore apart from `evaluation`, which needs a model alone.
"""

from nar_scale.reporting.likelihoods import DataOptions, describe_likelihood, measure_likelihoods
from nar_scale.reporting.report import Report, SampleOptions, make_report
from nar_scale.reporting.write import prepare_directory, write_report

__all__ = [
    "DataOptions",
    "Report",
    "SampleOptions",
    "describe_likelihood",
    "make_report",
    "measure_likelihoods",
    "prepare_directory",
    "write_report",
]
