"""Measure the likelihood of validation data under a consolidated checkpoint.

Autoregressive models give the exact value, non-autoregressive ones an upper bound.

python launcher/evaluate.py --checkpoint exported/quickstart_nar --data data/python_stdlib --output evaluation.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a consolidated checkpoint")
    parser.add_argument("--data", required=True, metavar="DIR|URL", help="a data set that prepare.py wrote")
    parser.add_argument("--output", required=True, metavar="FILE.json", help="where the result goes, or /dev/stdout")
    parser.add_argument("--split", default="validation", help="part of the data set (default: validation)")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate N sequences only, spread evenly")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sequences at a time (default: 16)")
    parser.add_argument("--index-directory", metavar="DIR", help="for the shard index, if the data is read-only")
    parser.add_argument("--cache-directory", metavar="DIR", help="for copies of remote shards")
    parser.add_argument("--cache-gib", type=float, default=100, metavar="N", help="of these, at most (default: 100)")
    parser.add_argument(
        "--weights", default="model", choices=["model", "ema"], help="ema: the moving average (default: model)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    options = parser.parse_args(arguments)

    # after the arguments have been checked: it takes seconds
    from nar_scale.checkpoint import load_consolidated
    from nar_scale.data import ShardCache, cache_bytes
    from nar_scale.errors import UserError
    from nar_scale.evaluation import evaluate_dataset
    from nar_scale.files import write_atomically
    from nar_scale.logging_setup import set_up_logging, write_result

    set_up_logging()
    try:
        model = load_consolidated(options.checkpoint, options.device, weights=options.weights)
        cache = None
        if options.cache_directory is not None:
            cache = ShardCache(options.cache_directory, cache_bytes(options.cache_gib))
        likelihood = evaluate_dataset(
            model.wrapper,
            options.data,
            model.info.vocabulary_size,
            options.split,
            options.batch_size,
            options.limit,
            options.index_directory,
            class_field=model.config.data.class_field,
            document_field=model.config.data.document_field,
            cache=cache,
        )
        result = {
            **asdict(likelihood),
            "perplexity": likelihood.perplexity,
            "bits_per_byte": likelihood.bits_per_byte,
            "checkpoint": options.checkpoint,
            "step": model.info.step,
            "weights": options.weights,
            "data": options.data,
            "split": options.split,
        }
    except UserError as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 2
    text, to_terminal = json.dumps(result, indent=2), sys.stdout
    try:
        if is_standard_output(options.output):  # where nothing else may be then, and what is there already stays
            write_result(text)
            to_terminal = sys.stderr
        else:
            write_atomically(Path(options.output), f"{text}\n".encode())
    except OSError as error:
        print(f"evaluate: error: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{likelihood.sequences:,} sequences, {likelihood.tokens:,} tokens: {likelihood}", file=to_terminal)
    return 0


def is_standard_output(path: str) -> bool:
    """Whether a path, such as /dev/stdout, leads to where the standard output of this process goes."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except OSError:  # nothing is there
        return False


if __name__ == "__main__":
    from _command import run

    sys.exit(run(main))
