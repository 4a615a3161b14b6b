"""Turn text files, or scikit-learn's handwritten digits, into shards ready for training."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nar_scale.data import DatasetInfo, prepare, prepare_digits
from nar_scale.errors import UserError

EXAMPLE = """\
example:
  python launcher/prepare.py --input docs notes.txt --output data/docs --seq-len 256 --include "*.txt"

  python launcher/prepare.py --digits --output data/digits

The first writes data/docs/train/shard-000000.tar ..., data/docs/validation/shard-000000.tar ... and
data/docs/dataset.json.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, nargs="+", metavar="PATH", help="files and folders")
    source.add_argument("--digits", action="store_true", help="the images that scikit-learn ships, 64 tokens each")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write the data set")
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens in a sample; needed with --input")
    parser.add_argument("--tokenizer", default="byte", metavar="byte|FILE", help="byte (default) or a tokenizer.json")
    parser.add_argument(
        "--validation", type=float, default=0.01, metavar="FRACTION", help="documents to hold out (default 0.01)"
    )
    parser.add_argument("--include", default="*", metavar="GLOB", help="names of files to take from folders")
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="NAME", help="names or globs of files and folders to leave out"
    )
    parser.add_argument("--samples-per-shard", type=int, default=8192, metavar="N", help="default 8192")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is already there")
    arguments = parser.parse_args(argv)
    if arguments.input and arguments.seq_len is None:
        parser.error("--input needs --seq-len")
    return arguments


def write(arguments: argparse.Namespace) -> DatasetInfo:
    if arguments.digits:
        return prepare_digits(arguments.output, overwrite=arguments.overwrite)
    return prepare(
        arguments.input,
        arguments.output,
        seq_len=arguments.seq_len,
        tokenizer=arguments.tokenizer,
        validation=arguments.validation,
        include=arguments.include,
        exclude=arguments.exclude,
        samples_per_shard=arguments.samples_per_shard,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
    )


def summary(info: DatasetInfo, output: Path, seconds: float) -> str:
    total_bytes = sum(split.bytes for split in info.splits.values())
    lines = [
        f"{name}: {split.documents:,} documents, {split.samples:,} samples, {split.tokens:,} tokens, "
        f"{split.shards:,} shards"
        for name, split in info.splits.items()
    ]
    skipped = ", ".join(f"{number:,} {reason}" for reason, number in info.skipped.items() if number)
    if skipped:
        lines.append(f"skipped files: {skipped}")
    text = f"{total_bytes / 1e6:.1f} MB of text in {seconds:.1f} s, {total_bytes / 1e6 / seconds:.1f} MB/s"
    lines.append(f"wrote {output}: {text}" if total_bytes else f"wrote {output}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    start = time.perf_counter()
    try:
        info = write(arguments)
    except UserError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 2
    print(summary(info, arguments.output, time.perf_counter() - start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
