"""The jobs of `prepare`, each a function of the arguments that returns a report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # else imported by the jobs, after the arguments have been checked: it takes seconds
    from nar_scale.data import DatasetInfo, ShardCache

MAX_FAULTS = 20  # lines about damaged shards


def run_corpus(arguments: argparse.Namespace) -> str:
    """Prepare a data set, or do one part of the work, or join the parts."""
    if arguments.part:
        return run_part(arguments)
    return run_merge(arguments) if arguments.merge else run_prepare(arguments)


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
    return f"prepare a data set with it by --tokenizer {arguments.tokenizer}"


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
    from nar_scale.logging_setup import report_error, write_result
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
        report_error("prepare", printable(fault))
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
    from nar_scale.text import counted

    before, start = written_at(output), time.perf_counter()
    info = make()
    seconds = time.perf_counter() - start
    total_bytes = sum(split.bytes for split in info.splits.values())
    lines = [
        f"{name}: {counted(split.documents, 'document')}, {counted(split.samples, 'sample')}, "
        f"{counted(split.tokens, 'token')}, {counted(split.shards, 'shard')}"
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
