"""The last step of preparation: all work items become one published data set."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nar_scale.data.formats.field_names import DOCUMENTS_FIELD, TOKENS_FIELD
from nar_scale.data.parallel import available_cores
from nar_scale.data.preparation.plan import Plan
from nar_scale.data.preparation.publish import find_finished, merge_lock, publish, refuse_existing_shards
from nar_scale.data.preparation.skipped import HIDDEN, Skipped, refuse_too_many
from nar_scale.data.preparation.small_shards import WrittenShard, merge_small_shards
from nar_scale.data.preparation.staging import plan_directory, remove_done
from nar_scale.data.preparation.work_item import WorkItemRecord, recipe_tokenizer, work_item_directory
from nar_scale.data.shards.dataset_info import DatasetInfo, SplitInfo
from nar_scale.data.shards.layout import FEW_VALIDATION_SAMPLES, SPLITS
from nar_scale.errors import DataError
from nar_scale.progress import kept_at_interrupt

logger = logging.getLogger(__name__)

NUMBERS_IN_MESSAGES = 10
KEPT = "finished work items are kept in {}; the same command goes on from there"

Records = Mapping[int, WorkItemRecord]  # by the number of the work item


class EmptySplit(DataError):
    """A split would have no document."""


def merge_work_items(
    plan: Plan, output: Path, workers: int | None = None, overwrite: bool = False, progress: bool = True
) -> DatasetInfo:
    """Check that every work item is done, and publish all shards as a data set.

    When it was killed, doing it again completes it; when all was done, it returns what is there. A work item has few
    samples for validation, so those of neighbours are put together into shards of the normal size, always the same
    ones.

    Args:
        plan: from `plan_dataset`, of the same inputs and settings as the parts were done with.
        output: the directory of the data set.
        workers: processes; by default as many as there are cores.
        overwrite: replace a data set that is already in `output`.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        The contents of `dataset.json`.

    Raises:
        UserError: `output` holds another data set already, or another process is merging there.
        DataError: work items are missing, a split is empty, or the output cannot be written.
    """
    try:
        with kept_at_interrupt(KEPT.format(output)), merge_lock(Path(output)):
            return _merge(plan, Path(output), workers or available_cores(), overwrite, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {output}: {reason}; choose a writable directory with enough space") from error


def _merge(plan: Plan, output: Path, workers: int, overwrite: bool, progress: bool) -> DatasetInfo:
    staging = plan_directory(plan, output)
    remove_done(output)
    finished = find_finished(staging, overwrite)
    if finished is not None:
        return finished
    refuse_existing_shards(staging, overwrite)
    records = _load_records(plan, staging)
    info = _describe(plan, records)
    shards = {split: _written_shards(plan, staging, records, split) for split in info.splits}
    tokenizer = recipe_tokenizer(plan.recipe)
    if "validation" in shards:
        few = merge_small_shards(
            shards["validation"],
            plan.recipe.samples_per_shard,
            staging / "joined" / "validation",
            workers,
            progress,
        )
        shards["validation"] = few
        info.splits["validation"] = replace(info.splits["validation"], shards=len(few))
    publish(staging, shards, info, tokenizer)
    _report(plan, records, info)
    return info


def _load_records(plan: Plan, staging: Path) -> Records:
    records = {item.number: WorkItemRecord.load(work_item_directory(staging, item.number)) for item in plan.work_items}
    missing = [str(number + 1) for number, record in records.items() if record is None]
    if missing:
        numbers = ", ".join(missing[:NUMBERS_IN_MESSAGES]) + (", ..." if len(missing) > NUMBERS_IN_MESSAGES else "")
        raise DataError(
            f"{len(missing)} of {len(records)} work items are missing in {staging.parent} ({numbers}); run the parts "
            "that have not finished with the same inputs and settings, then --merge again"
        )
    return {number: record for number, record in records.items() if record is not None}


def _written_shards(plan: Plan, staging: Path, records: Records, split: str) -> list[WrittenShard]:
    most = plan.recipe.samples_per_shard
    return [
        WrittenShard(
            work_item_directory(staging, number) / split / name, digest, min(most, record.samples - row * most)
        )
        for number, record in ((number, record.splits[split]) for number, record in records.items())
        for row, (name, _, digest) in enumerate(record.shards)
    ]


def _describe(plan: Plan, records: Records) -> DatasetInfo:
    recipe, tokenizer = plan.recipe, recipe_tokenizer(plan.recipe)
    splits = {}
    num_classes = 0
    for name in SPLITS:
        split_records = [record.splits[name] for record in records.values()]
        totals = {
            what: sum(getattr(record, what) for record in split_records)
            for what in ("documents", "samples", "tokens", "bytes")
        }
        num_classes = max([num_classes, *(record.classes for record in split_records)])
        if any(record.token_documents for record in split_records):
            totals["bytes"] = 0  # else they would be divided by the tokens of the arrays too
        if totals["samples"]:
            splits[name] = SplitInfo(**totals, shards=sum(len(record.shards) for record in split_records))
    skipped = _skipped(plan, records)
    refuse_too_many(skipped, plan.max_skipped)
    _check_splits(plan, splits, skipped)
    return DatasetInfo(
        tokenizer=None if tokenizer is None else tokenizer.name,
        vocabulary_size=recipe.vocabulary_size,
        end_token=recipe.end_token,
        seq_len=recipe.seq_len,
        field=TOKENS_FIELD,
        splits=splits,
        skipped={HIDDEN: 0, "binary": 0, "empty": 0, **skipped.counts},
        document_field=DOCUMENTS_FIELD if recipe.document_ids else None,
        num_classes=num_classes or None,
        special_tokens=recipe.special_tokens,
    )


def _skipped(plan: Plan, records: Records) -> Skipped:
    skipped = Skipped()
    for part in (plan.skipped, *(record.skipped for record in records.values())):
        skipped.update(part)
    return skipped


def _report(plan: Plan, records: Records, info: DatasetInfo) -> None:
    """Log how few documents were split, and what was left out, as a warning if it is more than what was read."""
    if plan.recipe.by_place:
        logger.info(
            "few documents: the last %g of each is the validation split (--validation-input takes one of its own)",
            plan.recipe.validation,
        )
    validation = info.splits.get("validation")
    if validation is not None and validation.samples < FEW_VALIDATION_SAMPLES:
        logger.info(
            "few validation samples: %s, %s tokens, over which a likelihood says little; give at least %d "
            "(--validation takes more of the input, --validation-input documents of their own)",
            validation.samples,
            f"{validation.tokens:,}",
            FEW_VALIDATION_SAMPLES,
        )
    skipped = _skipped(plan, records)
    documents = sum(split.documents for split in info.splits.values())
    read, left_out = (
        sum(getattr(record, name) for record in records.values()) for name in ("input_bytes", "skipped_bytes")
    )
    if skipped.counts:
        is_most = skipped.total > documents or left_out > read
        logger.log(
            logging.WARNING if is_most else logging.INFO,
            "%sskipped: %s",
            "WARNING: more was skipped than read; " * is_most,
            skipped,
        )
    if special_tokens := sum(record.special_tokens for record in records.values()):
        form = "plain text" if info.special_tokens == "text" else "their ids"
        logger.info("special tokens that the text spells out, encoded as %s: %s", form, f"{special_tokens:,}")


def _check_splits(plan: Plan, splits: dict[str, SplitInfo], skipped: Skipped) -> None:
    documents = {split: splits[split].documents if split in splits else 0 for split in SPLITS}
    total, fraction = sum(documents.values()), plan.recipe.validation
    if total == 0:
        raise EmptySplit(f"no document in the inputs; skipped: {skipped}; give files of text")
    if any(work_item.only_validation for work_item in plan.work_items):
        for split, option in (("train", "--input"), ("validation", "--validation-input")):
            if documents[split] == 0:
                raise EmptySplit(f"no document in the files of {option}; skipped: {skipped}; give files of text")
    elif fraction > 0 and documents["validation"] == 0:
        raise EmptySplit(
            f"none of the {total} documents fell into the validation split at a fraction of {fraction}; raise the "
            "fraction, give more documents, or give validation documents of their own by --validation-input"
        )
    elif documents["train"] == 0:
        raise EmptySplit(f"all {total} documents fell into the validation split; lower --validation {fraction}")
