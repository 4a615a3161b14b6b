"""Turn text files into shards ready for training."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nar_scale.data import DatasetInfo, prepare
from nar_scale.errors import UserError

EXAMPLE = """\
example:
  python launcher/prepare.py --input docs notes.txt --output data/docs --seq-len 256 --include "*.txt"

writes data/docs/train/shard-000000.tar ..., data/docs/validation/shard-000000.tar ... and data/docs/dataset.json.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="files and folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write the data set")
    parser.add_argument("--seq-len", type=int, required=True, metavar="N", help="tokens in a sample")
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
    return parser.parse_args(argv)


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
    lines.append(
        f"wrote {output}: {total_bytes / 1e6:.1f} MB of text in {seconds:.1f} s, {total_bytes / 1e6 / seconds:.1f} MB/s"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    start = time.perf_counter()
    try:
        info = prepare(
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
    except UserError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 2
    print(summary(info, arguments.output, time.perf_counter() - start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
