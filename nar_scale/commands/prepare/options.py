"""The options of `prepare`, in the groups that its subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_content_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what a data set holds."""
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens in a sample; needed")
    parser.add_argument("--tokenizer", metavar="byte|FILE", help="byte (default) or a tokenizer.json")
    parser.add_argument(
        "--train-tokenizer",
        type=int,
        metavar="VOCAB",
        help="train the tokenizer FILE with this many tokens on the input first",
    )
    parser.add_argument(
        "--end-token",
        metavar="NAME",
        help="the token of the tokenizer.json that ends a document (default: <|endoftext|>, </s>, [SEP] or <eos>)",
    )
    parser.add_argument(
        "--special-tokens",
        choices=("text", "ids"),
        default="text",
        help="how special tokens of the tokenizer.json that a text spells out are encoded (default: as plain text)",
    )
    parser.add_argument("--vocabulary-size", type=int, metavar="N", help="for input that is tokens of no tokenizer")
    parser.add_argument(
        "--one-document-per-sample", action="store_true", help="do not concatenate documents: pad them, cut longer ones"
    )
    parser.add_argument("--document-ids", action="store_true", help="also write which document each token belongs to")
    parser.add_argument(
        "--validation",
        type=float,
        metavar="FRACTION",
        help="documents for the validation split, or of few documents the last part of each (default 0.01)",
    )
    parser.add_argument(
        "--validation-input", type=Path, nargs="+", default=[], metavar="PATH", help="files and folders for validation"
    )
    parser.add_argument(
        "--max-skipped",
        type=int,
        metavar="N",
        help="fail if more documents than this are left out: null, empty or binary (default: any number)",
    )


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which documents are read."""
    parser.add_argument("--text-field", default="text", metavar="NAME", help="key, column or field of the text")
    parser.add_argument("--include", default="*", metavar="GLOB", help="names of files to take from folders")
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="NAME", help="names or globs of files and folders to leave out"
    )
    parser.add_argument(
        "--as-text", nargs="+", default=[], metavar="GLOB", help="names of files to read as plain text, such as *.json"
    )


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how the work on a corpus is divided."""
    parser.add_argument("--samples-per-shard", type=int, default=8192, metavar="N", help="at most (default 8192)")
    parser.add_argument(
        "--unit-bytes", type=int, metavar="N", help="input bytes in a work item (default: about 4 shards)"
    )
    parser.add_argument("--part", type=part, metavar="I/N", help="do only the I-th of N parts; others do the rest")
    parser.add_argument("--merge", action="store_true", help="check that all parts are done and publish the data set")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many processes do the work."""
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")


def add_index_directory(parser: argparse.ArgumentParser) -> None:
    """Where indices are, if not beside their shards."""
    parser.add_argument("--index-directory", metavar="DIR", help="for the shard index, if a folder is read-only")


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Where remote shards are kept."""
    parser.add_argument("--cache-directory", metavar="DIR", help="for copies of remote shards")
    parser.add_argument("--cache-gib", type=float, default=100, metavar="N", help="of these, at most (default 100)")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Whether a data set may be replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is already there")


def part(text: str) -> tuple[int, int]:
    """A part of the work, such as 2/8: its number, from 1 on, and how many there are."""
    number, _, parts = text.partition("/")
    return int(number), int(parts)


def check_needed(parser: argparse.ArgumentParser, arguments: argparse.Namespace, *needed: str) -> None:
    """End the command where it lacks one of these options, and name the inputs that do not exist as well."""
    lacking = [f"--{name.replace('_', '-')}" for name in needed if getattr(arguments, name) is None]
    if lacking:
        wrong = [f"input {path} does not exist" for path in arguments.input or () if not path.exists()]
        parser.error("; ".join([*wrong, f"{' and '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} needed"]))


def check_corpus(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the command where options of a corpus exclude each other."""
    if arguments.validation_input and arguments.validation is not None:
        parser.error(
            "--validation takes a part of the input, --validation-input documents of their own: give one of them"
        )
    if arguments.part and arguments.merge:
        parser.error("--merge comes after all parts, in a command of its own")
    if arguments.train_tokenizer and arguments.tokenizer in (None, "byte"):
        parser.error("--train-tokenizer needs --tokenizer FILE, the file to write")
