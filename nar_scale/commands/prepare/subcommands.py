"""The subcommands of `prepare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nar_scale.commands.prepare import jobs, options
from nar_scale.commands.process import Parser

_DESCRIPTION = "Turn a corpus into shards for training, and look at shards."

_EXAMPLES = """\
examples:
  nar-scale prepare corpus docs notes.txt --output data/docs --seq-len 256 --include "*.txt"

  nar-scale prepare corpus web.jsonl.zst --output data/web --seq-len 1024 \\
      --tokenizer web.tokenizer.json --train-tokenizer 32000

  nar-scale prepare inspect data/docs
  nar-scale prepare verify data/docs

`nar-scale prepare corpus --help` says more. The flags of launcher/prepare.py (--input, --digits, --inspect, --verify,
--index, ...) are accepted too.
"""

_CORPUS = """\
Turn files into a data set: shards of samples, of which each rank reads its own.

Inputs are files and folders of .txt and other text (one document each), .jsonl, .json, .csv, .tsv, .parquet, WebDataset
.tar, token arrays and images in .npy or .npz; text, JSON and tables also compressed as .gz, .bz2, .xz or .zst. A file
of another name that begins like JSON is read as JSON.
"""

_CORPUS_EXAMPLES = """\
examples:
  nar-scale prepare corpus shakespeare.txt --output data/shakespeare --seq-len 256

  nar-scale prepare corpus images.npz --output data/images --seq-len 784 --vocabulary-size 256 --one-document-per-sample

A run that was killed continues where it was when the same command is run again. On many machines that share a file
system, run the same command with --part 1/N to --part N/N, then with --merge; the result does not depend on N.
"""


def parse_subcommand(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command, checked, with the `job` that they ask for."""
    parser = Parser(description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    raw = argparse.RawDescriptionHelpFormatter
    corpus = commands.add_parser(
        "corpus", help="files into a data set", description=_CORPUS, epilog=_CORPUS_EXAMPLES, formatter_class=raw
    )
    _corpus(corpus)
    for name, what, add in (
        ("tokenizer", "learn a tokenizer from files", _tokenizer),
        ("digits", "the images that scikit-learn ships, 64 tokens each, into a data set", _digits),
        ("inspect", "describe what is in a folder of shards", _inspect),
        ("verify", "read a whole data set again and verify its integrity", _verify),
        ("index", "build the indices of shards, so that training need not", _index),
    ):
        add(commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}."))
    arguments = parser.parse_args(argv)
    if arguments.job is jobs.run_corpus:
        _check_corpus(corpus, arguments)
    return arguments


def _corpus(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=jobs.run_corpus)
    parser.add_argument("input", type=Path, nargs="+", metavar="PATH", help="files and folders")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write the data set; needed")
    options.add_content_options(parser)
    options.add_input_options(parser)
    options.add_work_options(parser)
    options.add_workers(parser)
    options.add_overwrite(parser)


def _check_corpus(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    options.check_needed(parser, arguments, "output", "seq_len")
    options.check_corpus(parser, arguments)


def _tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=jobs.run_train_tokenizer, part=None, merge=False)
    parser.add_argument("input", type=Path, nargs="+", metavar="PATH", help="files and folders")
    parser.add_argument(
        "--output", required=True, dest="tokenizer", metavar="FILE", help="the tokenizer.json file to write"
    )
    parser.add_argument(
        "--vocabulary-size", type=int, required=True, dest="train_tokenizer", metavar="N", help="number of tokens"
    )
    options.add_input_options(parser)


def _digits(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=jobs.run_digits)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write the data set")
    options.add_overwrite(parser)


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=jobs.run_inspect)
    parser.add_argument("inspect", metavar="DIR|URL", help="the folder")
    options.add_index_directory(parser)
    options.add_cache_options(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=jobs.run_verify)
    parser.add_argument("verify", metavar="DIR", help="the data set")
    options.add_index_directory(parser)
    options.add_workers(parser)


def _index(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=jobs.run_index)
    parser.add_argument("index", nargs="+", metavar="DIR|URL", help="folders of shards, or globs")
    options.add_index_directory(parser)
    options.add_cache_options(parser)
    options.add_workers(parser)
