"""Turn a corpus, or scikit-learn's handwritten digits, into shards for training; inspect, verify and index shards."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # else imported by the jobs, after the arguments have been checked: it takes seconds
    from nar_scale.data import DatasetInfo, ShardCache

MAX_FAULTS = 20  # lines about damaged shards

EXAMPLE = """\
inputs: files and folders of .txt and other text (one document each), .jsonl, .json, .csv, .tsv, .parquet, WebDataset
.tar, token arrays and images in .npy or .npz; text, JSON and tables also compressed as .gz, .bz2, .xz or .zst. A file
of another name that begins like JSON is read as JSON.

examples:
  python launcher/prepare.py --input docs notes.txt --output data/docs --seq-len 256 --include "*.txt"

  python launcher/prepare.py --input shakespeare.txt --output data/shakespeare --seq-len 256

  python launcher/prepare.py --input web.jsonl.zst --output data/web --seq-len 1024 \\
      --tokenizer web.tokenizer.json --train-tokenizer 32000

  python launcher/prepare.py --input images.npz --output data/images --seq-len 784 --vocabulary-size 256 \\
      --one-document-per-sample

  python launcher/prepare.py --inspect data/docs
  python launcher/prepare.py --verify data/docs
  python launcher/prepare.py --index /shared/their_shards
  python launcher/prepare.py --digits --output data/digits

A run that was killed continues where it was when the same command is run again. On many machines that share a file
system, run the same command with --part 1/N to --part N/N, then with --merge; the result does not depend on N.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_content_arguments(parser)
    add_work_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.input and arguments.seq_len is None and not (arguments.train_tokenizer and arguments.output is None):
        parser.error("--input needs --seq-len")
    if (arguments.digits or (arguments.input and not arguments.train_tokenizer)) and arguments.output is None:
        parser.error("--output is needed")
    if not (arguments.input or arguments.digits):
        for name in ("output", "part", "merge", "overwrite"):
            if getattr(arguments, name):
                parser.error(f"--{name} goes with --input: nothing is prepared here")
    if arguments.validation_input and arguments.validation is not None:
        parser.error(
            "--validation takes a part of --input, --validation-input documents of their own: give one of them"
        )
    if arguments.part and arguments.merge:
        parser.error("--merge comes after all parts, in a command of its own")
    if arguments.train_tokenizer and arguments.tokenizer in (None, "byte"):
        parser.error("--train-tokenizer needs --tokenizer FILE, the file to write")
    return arguments


def add_content_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what is done, and what a data set holds."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, nargs="+", metavar="PATH", help="files and folders")
    source.add_argument("--digits", action="store_true", help="the images that scikit-learn ships, 64 tokens each")
    source.add_argument("--inspect", metavar="DIR|URL", help="describe what is in a folder of shards")
    source.add_argument("--verify", metavar="DIR", help="read a whole data set again and verify its integrity")
    source.add_argument(
        "--index", nargs="+", metavar="DIR|URL", help="build the indices of shards, so that training need not"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write the data set")
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens in a sample; needed with --input")
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
    parser.add_argument("--text-field", default="text", metavar="NAME", help="key, column or field of the text")
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
    parser.add_argument("--include", default="*", metavar="GLOB", help="names of files to take from folders")
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="NAME", help="names or globs of files and folders to leave out"
    )
    parser.add_argument(
        "--as-text", nargs="+", default=[], metavar="GLOB", help="names of files to read as plain text, such as *.json"
    )
    parser.add_argument(
        "--max-skipped",
        type=int,
        metavar="N",
        help="fail if more documents than this are left out: null, empty or binary (default: any number)",
    )


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how the work is divided, and where it is kept."""
    parser.add_argument("--samples-per-shard", type=int, default=8192, metavar="N", help="at most (default 8192)")
    parser.add_argument(
        "--unit-bytes", type=int, metavar="N", help="input bytes in a work item (default: about 4 shards)"
    )
    parser.add_argument("--part", type=part, metavar="I/N", help="do only the I-th of N parts; others do the rest")
    parser.add_argument("--merge", action="store_true", help="check that all parts are done and publish the data set")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--index-directory", metavar="DIR", help="for the shard index, if a folder is read-only")
    parser.add_argument("--cache-directory", metavar="DIR", help="for copies of remote shards")
    parser.add_argument("--cache-gib", type=float, default=100, metavar="N", help="of these, at most (default 100)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is already there")


def part(text: str) -> tuple[int, int]:
    """A part of the work, such as 2/8: its number, from 1 on, and how many there are."""
    number, _, parts = text.partition("/")
    return int(number), int(parts)


def job_of(arguments: argparse.Namespace) -> Callable[[argparse.Namespace], str]:
    """Return the function for what is asked; it returns a report."""
    if arguments.inspect:
        return run_inspect
    if arguments.verify:
        return run_verify
    if arguments.index:
        return run_index
    if arguments.digits:
        return run_digits
    if arguments.train_tokenizer and arguments.output is None:
        return run_train_tokenizer
    if arguments.part:
        return run_part
    return run_merge if arguments.merge else run_prepare


def run_prepare(arguments: argparse.Namespace) -> str:
    """Prepare the whole data set."""
    from nar_scale.data import prepare

    train_tokenizer_first(arguments)
    return summary(
        arguments.output,
        lambda: prepare(arguments.input, arguments.output, overwrite=arguments.overwrite, **settings(arguments)),
    )


def run_part(arguments: argparse.Namespace) -> str:
    """Do one part of the work."""
    from nar_scale.data import plan_dataset, prepare_work_items

    train_tokenizer_first(arguments)
    plan = plan_dataset(arguments.input, arguments.output, **settings(arguments))
    done = prepare_work_items(plan, arguments.output, arguments.part, arguments.workers, arguments.overwrite)
    number, parts = arguments.part
    return f"part {number}/{parts}: {done:,} of {len(plan.work_items):,} work items done in {arguments.output}"


def run_merge(arguments: argparse.Namespace) -> str:
    """Join the parts into the data set."""
    from nar_scale.data import merge_work_items, plan_dataset

    train_tokenizer_first(arguments)
    plan = plan_dataset(arguments.input, arguments.output, **settings(arguments))
    return summary(
        arguments.output, lambda: merge_work_items(plan, arguments.output, arguments.workers, arguments.overwrite)
    )


def run_train_tokenizer(arguments: argparse.Namespace) -> str:
    """Train a tokenizer and nothing else."""
    train_tokenizer_first(arguments)
    return "give --output and --seq-len as well to prepare a data set with it"


def run_digits(arguments: argparse.Namespace) -> str:
    """Prepare the handwritten digits."""
    from nar_scale.examples.digits import prepare_digits

    return summary(arguments.output, lambda: prepare_digits(arguments.output, overwrite=arguments.overwrite))


def run_inspect(arguments: argparse.Namespace) -> str:
    """Describe a folder of shards."""
    from nar_scale.data import inspect

    return inspect(arguments.inspect, index_directory=arguments.index_directory, cache=shard_cache(arguments))


def run_verify(arguments: argparse.Namespace) -> str:
    """Read a whole data set again."""
    from nar_scale.data import verify

    return str(verify(arguments.verify, index_directory=arguments.index_directory, workers=arguments.workers))


def run_index(arguments: argparse.Namespace) -> str:
    """Build the indices of shards."""
    from nar_scale.data import index_shards
    from nar_scale.errors import DataError
    from nar_scale.logging_setup import write_result
    from nar_scale.text import printable

    done = index_shards(arguments.index, arguments.index_directory, shard_cache(arguments), arguments.workers)
    report, faults = "\n".join(done.lines), done.faults
    if not faults:
        return report
    if report:
        write_result(report)
    if len(faults) > MAX_FAULTS:
        faults = [*faults[:MAX_FAULTS], f"{len(faults) - MAX_FAULTS:,} more are damaged or missing"]
    for fault in faults[:-1]:
        print(f"prepare: error: {printable(fault)}", file=sys.stderr)
    raise DataError(faults[-1])


def train_tokenizer_first(arguments: argparse.Namespace) -> None:
    """Train the tokenizer if that is asked for and its file does not exist, and print what was done."""
    if not arguments.train_tokenizer:
        return
    from nar_scale.data import train_tokenizer
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import write_result

    path = Path(arguments.tokenizer)
    if path.exists():
        write_result(f"{path} is there already and is used as it is")
        return
    if arguments.part or arguments.merge:
        raise UserError(
            f"{path} is missing; train it before the parts, with --train-tokenizer but without --output, so that all "
            "parts have the same one"
        )
    train_tokenizer(
        arguments.input,
        arguments.train_tokenizer,
        path,
        text_field=arguments.text_field,
        include=arguments.include,
        exclude=arguments.exclude,
        as_text=arguments.as_text,
    )
    write_result(f"wrote {path}")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `plan_dataset`."""
    return {
        "seq_len": arguments.seq_len,
        "tokenizer": arguments.tokenizer or (None if arguments.vocabulary_size else "byte"),
        "end_token": arguments.end_token,
        "special_tokens": arguments.special_tokens,
        "vocabulary_size": arguments.vocabulary_size,
        "text_field": arguments.text_field,
        "packed": not arguments.one_document_per_sample,
        "document_ids": arguments.document_ids,
        "validation": 0.01 if arguments.validation is None else arguments.validation,
        "validation_inputs": arguments.validation_input,
        "include": arguments.include,
        "exclude": arguments.exclude,
        "as_text": arguments.as_text,
        "max_skipped": arguments.max_skipped,
        "samples_per_shard": arguments.samples_per_shard,
        "unit_bytes": arguments.unit_bytes,
        "workers": arguments.workers,
    }


def shard_cache(arguments: argparse.Namespace) -> ShardCache | None:
    """The cache of remote shards on this node, if a directory for it is given."""
    if arguments.cache_directory is None:
        return None
    from nar_scale.data import ShardCache, cache_bytes

    return ShardCache(arguments.cache_directory, cache_bytes(arguments.cache_gib))


def summary(output: Path, make: Callable[[], DatasetInfo]) -> str:
    """Make a data set, and describe it in a few lines."""
    before, start = written_at(output), time.perf_counter()
    info = make()
    seconds = time.perf_counter() - start
    total_bytes = sum(split.bytes for split in info.splits.values())
    lines = [
        f"{name}: {split.documents:,} documents, {split.samples:,} samples, {split.tokens:,} tokens, "
        f"{split.shards:,} shards"
        for name, split in info.splits.items()
    ]
    text = f"{total_bytes / 1e6:.1f} MB of text in {seconds:.1f} s, {total_bytes / 1e6 / seconds:.1f} MB/s"
    if written_at(output) == before:
        lines.append(f"{output} holds the data set of these inputs and settings already; nothing was written")
    else:
        lines.append(f"wrote {output}: {text}" if total_bytes else f"wrote {output}")
    return "\n".join(lines)


def written_at(output: Path) -> int | None:
    """Return the time of the last writing of a data set in nanoseconds; None if there is none."""
    try:
        return (output / "dataset.json").stat().st_mtime_ns
    except OSError:
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    arguments = parse_arguments(argv)
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import set_up_logging, write_result
    from nar_scale.text import printable

    set_up_logging()

    try:
        report = job_of(arguments)(arguments)
    except UserError as error:
        print(f"prepare: error: {printable(str(error))}", file=sys.stderr)
        return 2
    try:
        write_result(report)
    except OSError as error:
        print(f"prepare: error: cannot write the standard output: {error.strerror}", file=sys.stderr)
        return 2
    return 0
