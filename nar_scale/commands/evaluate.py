"""Measure the likelihood of validation data under consolidated checkpoints, and the quality of their samples.

Autoregressive models give the exact value, non-autoregressive ones an upper bound.

nar-scale evaluate --checkpoint exported/quickstart_nar --data data/python_stdlib --output evaluation.json

With --report, one or several checkpoints are compared: likelihoods by source and by the fraction that is masked, and
samples over a grid of temperatures and steps, as report.json, report.md and report.png.

nar-scale evaluate --checkpoint exported/quickstart_ar exported/quickstart_nar --data data/python_stdlib \\
    --report reports/quickstarts --reference-checkpoint exported/large_ar
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nar_scale.commands.process import Parser

if TYPE_CHECKING:
    from nar_scale.reporting import DataOptions


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.output is None and options.report is None:
        parser.error("give --output FILE.json, --report DIR or both")
    if options.output is not None and len(options.checkpoint) > 1:
        parser.error("--output is about one checkpoint; compare several with --report DIR")

    # after the arguments have been checked: it takes seconds
    from nar_scale.data import ShardCache, cache_bytes
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import report_error, set_up_logging
    from nar_scale.progress import kept_at_interrupt
    from nar_scale.reporting import DataOptions

    set_up_logging()
    try:
        cache = None
        if options.cache_directory is not None:
            cache = ShardCache(options.cache_directory, cache_bytes(options.cache_gib))
        data = DataOptions(
            _sources(options.data), options.split, options.limit, options.batch_size, options.index_directory, cache
        )
        with kept_at_interrupt("what was not finished was not written"):
            status = 0 if options.output is None else _write_likelihood(options, data)
            if status == 0 and options.report is not None:
                _write_report(options, data)
    except UserError as error:
        return report_error("evaluate", error)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, nargs="+", metavar="DIR", help="consolidated checkpoints")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="[NAME=]DIR|URL",
        help="data sets that prepare.py wrote; of several, each is a source with a name, by default that of its folder",
    )
    parser.add_argument("--output", metavar="FILE.json", help="where the likelihood goes, or /dev/stdout")
    parser.add_argument("--report", metavar="DIR", help="where report.json, report.md and report.png go")
    parser.add_argument("--split", default="validation", help="part of the data set (default: validation)")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate N sequences of a source only, spread evenly")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sequences at a time (default: 16)")
    parser.add_argument("--index-directory", metavar="DIR", help="for the shard index, if the data is read-only")
    parser.add_argument("--cache-directory", metavar="DIR", help="for copies of remote shards")
    parser.add_argument("--cache-gib", type=float, default=100, metavar="N", help="of these, at most (default: 100)")
    parser.add_argument(
        "--weights", default="model", choices=["model", "ema"], help="ema: the moving average (default: model)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    samples = parser.add_argument_group("samples of a report")
    samples.add_argument("--samples", type=int, default=64, metavar="N", help="of each setting; 0: none (default: 64)")
    samples.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 0.7, 0.85, 1.0], metavar="T")
    samples.add_argument(
        "--samplers",
        nargs="+",
        metavar="NAME[:KEY=VALUE,...]",
        help="that fill in masks, such as threshold:threshold=0.6 (default: each checkpoint's own)",
    )
    samples.add_argument(
        "--steps", type=int, nargs="+", metavar="N", help="that fill in masks (default: 1/8, 1/4, 1/2, 1 of the tokens)"
    )
    samples.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    samples.add_argument(
        "--reference-checkpoint",
        metavar="DIR",
        help="scores the samples (generative perplexity): a consolidated checkpoint, or of the Hugging Face layout",
    )
    samples.add_argument(
        "--training-samples",
        type=int,
        default=200_000,
        metavar="N",
        help="sequences of the training text that are searched for generated words (default: 200000; 0: none)",
    )
    samples.add_argument("--mauve", action="store_true", help="measure MAUVE too, under the reference model")
    return parser


def _sources(given: list[str]) -> dict[str, str]:
    """Data sets by name of the source."""
    from nar_scale.errors import UserError

    sources: dict[str, str] = {}
    for text in given:
        named = re.fullmatch(r"([\w.-]+)=(.+)", text)
        name, directory = named.groups() if named else (Path(text.rstrip("/")).name or text, text)
        if name in sources:
            raise UserError(f"two sources are named {name!r}; name them with --data NAME=DIR")
        sources[name] = directory
    return sources


def _write_likelihood(options: argparse.Namespace, data: DataOptions) -> int:
    from nar_scale.checkpoint import load_consolidated
    from nar_scale.evaluation import pool_likelihoods
    from nar_scale.files import write_atomically
    from nar_scale.logging_setup import report_error, write_result
    from nar_scale.reporting import describe_likelihood, measure_likelihoods

    (checkpoint,) = options.checkpoint
    model = load_consolidated(checkpoint, options.device, weights=options.weights)
    sources = measure_likelihoods(model, data)
    likelihood = pool_likelihoods(sources)
    result: dict[str, Any] = {
        **describe_likelihood(likelihood),
        "checkpoint": checkpoint,
        "step": model.info.step,
        "weights": options.weights,
        "data": options.data[0] if len(options.data) == 1 else options.data,
        "split": options.split,
        "by_source": {name: describe_likelihood(each) for name, each in sources.items()},
    }
    text = json.dumps(result, indent=2)
    to_output = is_standard_output(options.output)  # where nothing else may be then, and what is there already stays
    try:
        if to_output:
            write_result(text)
        else:
            write_atomically(Path(options.output), f"{text}\n".encode())
    except OSError as error:
        return report_error("evaluate", f"cannot write {options.output}: {error.strerror}")
    summary = f"{likelihood.sequences:,} sequences, {likelihood.tokens:,} tokens: {likelihood}"
    if to_output:
        sys.stderr.write(f"{summary}\n")
    else:
        write_result(summary)
    return 0


def _write_report(options: argparse.Namespace, data: DataOptions) -> None:
    from nar_scale.logging_setup import write_result
    from nar_scale.reporting import SampleOptions, make_report, prepare_directory, write_report

    samples = SampleOptions(
        options.samples,
        options.temperatures,
        options.samplers,
        options.steps,
        options.seed,
        options.reference_checkpoint,
        options.training_samples,
        options.mauve,
    )
    prepare_directory(options.report)
    report = make_report(options.checkpoint, data, samples, options.device, options.weights)
    files = write_report(report, options.report)
    lines = [f"{model.name}: {model.likelihood}" for model in report.models]
    write_result("\n".join([*lines, f"wrote {', '.join(map(str, files))}"]))


def is_standard_output(path: str) -> bool:
    """Whether a path, such as /dev/stdout, leads to where the standard output of this process goes."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except OSError:  # nothing is there
        return False
