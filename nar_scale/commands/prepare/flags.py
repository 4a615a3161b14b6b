"""The form of `prepare` without subcommands: flags alone, as scripts have them that were written for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from nar_scale.commands.prepare import jobs, options
from nar_scale.commands.process import Parser


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command, checked, with the `job` that they ask for."""
    parser = Parser(
        usage="%(prog)s (--input | --digits | --inspect | --verify | --index) ... (see also --help)", add_help=False
    )
    _add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.digits:
        options.check_needed(parser, arguments, "output")
    elif arguments.input and not (arguments.train_tokenizer and arguments.output is None):
        options.check_needed(parser, arguments, "output", "seq_len")
    if not (arguments.input or arguments.digits):
        for name in ("output", "part", "merge", "overwrite"):
            if getattr(arguments, name):
                parser.error(f"--{name} goes with --input: nothing is prepared here")
    options.check_corpus(parser, arguments)
    arguments.job = _job_of(arguments)
    return arguments


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, nargs="+", metavar="PATH", help="files and folders")
    source.add_argument("--digits", action="store_true", help="the images that scikit-learn ships, 64 tokens each")
    source.add_argument("--inspect", metavar="DIR|URL", help="describe what is in a folder of shards")
    source.add_argument("--verify", metavar="DIR", help="read a whole data set again and verify its integrity")
    source.add_argument(
        "--index", nargs="+", metavar="DIR|URL", help="build the indices of shards, so that training need not"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write the data set")
    options.add_content_options(parser)
    options.add_input_options(parser)
    options.add_work_options(parser)
    options.add_workers(parser)
    options.add_index_directory(parser)
    options.add_cache_options(parser)
    options.add_overwrite(parser)


def _job_of(arguments: argparse.Namespace) -> Callable[[argparse.Namespace], str]:
    if arguments.inspect:
        return jobs.run_inspect
    if arguments.verify:
        return jobs.run_verify
    if arguments.index:
        return jobs.run_index
    if arguments.digits:
        return jobs.run_digits
    if arguments.train_tokenizer and arguments.output is None:
        return jobs.run_train_tokenizer
    return jobs.run_corpus
