"""Turning a corpus into a data set of WebDataset shards, on one machine or many."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nar_scale.data.formats.corpus import find_corpus
from nar_scale.data.formats.field_names import DOCUMENTS_FIELD, TOKENS_FIELD
from nar_scale.data.formats.input_formats import DEFAULT_TEXT_FIELD
from nar_scale.data.formats.inputs import is_token_file
from nar_scale.data.parallel import available_cores, ordered_map, progress_bar
from nar_scale.data.preparation.merge import WrittenShard, join_small_shards
from nar_scale.data.preparation.plan import Plan, Recipe, make_plan
from nar_scale.data.preparation.publish import alone, publish, refuse_existing_shards
from nar_scale.data.preparation.staging import discard, remove_done, staging_directory
from nar_scale.data.preparation.work_item import UnitRecord, prepare_unit, remove_leftovers, unit_directory
from nar_scale.data.shards.dataset_info import DatasetInfo, SplitInfo
from nar_scale.data.shards.layout import SPLITS
from nar_scale.data.tokenizers import ByteTokenizer, load_tokenizer
from nar_scale.errors import DataError, UserError

MIN_UNIT_BYTES = 1 << 22
UNITS_IN_MESSAGES = 10


class EmptySplit(DataError):
    """A split would have no document."""


def prepare(
    inputs: Sequence[Path],
    output: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: object,
) -> DatasetInfo:
    """Turn a corpus into a data set: `plan_dataset`, all units, and `merge_units`.

    A run that was killed goes on where it was when the same is asked for again.

    Args:
        inputs: files and folders.
        output: directory for `train/`, `validation/` and `dataset.json`.
        workers: processes; by default as many as there are cores.
        overwrite: replace a data set that is already in `output`.
        progress: show a progress bar if stderr is a terminal.
        settings: see `plan_dataset`.

    Returns:
        The contents of `dataset.json`.

    Raises:
        UserError: an argument is out of range, or `output` holds a data set already.
        DataError: an input is missing or unreadable, a split would be empty, or the output cannot be written.
    """
    plan = plan_dataset(inputs, output, workers=workers, **settings)  # type: ignore[arg-type]
    try:
        prepare_units(plan, output, workers=workers, overwrite=overwrite, progress=progress)
        return merge_units(plan, output, workers, overwrite, progress)
    except EmptySplit:
        discard(_staging(plan, output))  # to go on from here would end in the same way
        raise
    finally:
        _remove_if_empty(_staging(plan, output))


def plan_dataset(
    inputs: Sequence[Path],
    output: Path,
    *,
    seq_len: int,
    tokenizer: str | None = "byte",
    vocabulary_size: int | None = None,
    text_field: str = DEFAULT_TEXT_FIELD,
    packed: bool = True,
    document_ids: bool = False,
    validation: float = 0.01,
    include: str = "*",
    exclude: Sequence[str] = (),
    samples_per_shard: int = 8192,
    unit_bytes: int | None = None,
    workers: int | None = None,
) -> Plan:
    """Cut a corpus into units of work, the same on every machine that sees the same files.

    In sorted order the documents of a unit are encoded, each followed by an end token, joined, and cut every
    `seq_len` tokens; the last sample of a unit and split may be shorter. Documents go to the validation split by the
    hash of their content, so equal documents never stand on both sides.

    Args:
        inputs: files, and folders walked recursively; hidden files are skipped. Formats: see `read_piece`.
        output: the directory of the data set, not looked into for input.
        seq_len: tokens in a sample, at least 2.
        tokenizer: "byte", or a Hugging Face `tokenizer.json` file; None where the input is tokens of no tokenizer.
        vocabulary_size: number of token ids then.
        text_field: the key, column or field that holds the text, in formats that have such.
        packed: join documents; otherwise each is a sample of its own, and a longer one is cut into several.
        document_ids: write which document each token belongs to, in `documents.npy`.
        validation: expected fraction of the documents to hold out, in [0, 1); 0 writes no validation split.
        include: glob on the names of files in folders.
        exclude: globs on the parts of paths below a folder, such as "site-packages".
        samples_per_shard: most samples in a tar file.
        unit_bytes: input that is packed together; about four shards of bytes if not given.
        workers: processes that look at the inputs; by default as many as there are cores.

    Raises:
        UserError: an argument is out of range or does not go with another.
        DataError: an input is missing or unreadable, or there is none.
    """
    inputs, workers = [Path(path) for path in inputs], available_cores() if workers is None else workers
    unit_bytes = max(4 * samples_per_shard * seq_len, MIN_UNIT_BYTES) if unit_bytes is None else unit_bytes
    _check_range("seq_len", seq_len, 2)
    _check_range("samples_per_shard", samples_per_shard, 1)
    _check_range("unit_bytes", unit_bytes, 1)
    _check_range("workers", workers, 1)
    _check_range("vocabulary_size", 1 if vocabulary_size is None else vocabulary_size, 1)
    if not 0 <= validation < 1:
        raise UserError(f"validation is {validation}; give a fraction of the documents, 0 <= fraction < 1")
    if (tokenizer is None) == (vocabulary_size is None):
        raise UserError("give a tokenizer, or for input that is tokens of no tokenizer a vocabulary size")
    encoder = None if tokenizer is None else load_tokenizer(tokenizer)
    recipe = Recipe(
        seq_len=seq_len,
        tokenizer=tokenizer if tokenizer in (None, ByteTokenizer.name) else str(Path(tokenizer).resolve()),
        tokenizer_fingerprint="" if encoder is None else encoder.fingerprint,
        vocabulary_size=int(vocabulary_size or 0) if encoder is None else encoder.vocabulary_size,
        end_token=None if encoder is None else encoder.end_token,
        text_field=text_field,
        validation=validation,
        packed=packed,
        document_ids=document_ids,
        samples_per_shard=samples_per_shard,
        unit_bytes=unit_bytes,
    )
    corpus = find_corpus(inputs, include, exclude, Path(output))
    corpus = replace(corpus, files=[file for file in corpus.files if str(file) != recipe.tokenizer])
    if not corpus.files:
        raise DataError(f"no file to read in {_names(inputs)}; check the paths and the include and exclude patterns")
    _check_kinds(corpus.files, tokenizer)
    return make_plan(corpus, recipe, workers)


def prepare_units(
    plan: Plan,
    output: Path,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """Do the units of one part that nobody has done, each in one of several processes.

    Any number of machines that share `output` may do parts, the same part too.

    Args:
        plan: from `plan_dataset`.
        output: the directory of the data set.
        part: (I, N): every N-th unit from the I-th on, counted from 1.
        workers: processes; by default as many as there are cores.
        overwrite: a data set that is already in `output` is to be replaced.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        The number of units in the part.

    Raises:
        UserError: there is no such part, or `output` holds a data set already.
        DataError: an input cannot be read, or the output cannot be written.
    """
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"part is {part[0]}/{part[1]}; give I/N with I from 1 to N")
    units = plan.part(*part)
    staging = _staging(plan, output)
    remove_done(staging.parent)
    refuse_existing_shards(staging, overwrite)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        remove_leftovers(staging)
        tasks = [(unit, plan.recipe, staging) for unit in units]
        workers = min(available_cores() if workers is None else workers, max(len(units), 1))
        with progress_bar("prepare", sum(unit.size for unit in units), "B", progress) as bar:
            for unit, _ in zip(units, ordered_map(prepare_unit, tasks, workers)):
                bar.update(unit.size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {output}: {reason}; choose a writable directory with enough space") from error
    return len(units)


def merge_units(
    plan: Plan, output: Path, workers: int | None = None, overwrite: bool = False, progress: bool = True
) -> DatasetInfo:
    """Check that every unit is done, and publish all shards as a data set; doing it again after a kill completes it.

    A unit has few samples for validation, so those of neighbouring units are put together into shards of the normal
    size, always the same ones.

    Args:
        plan: from `plan_dataset`, of the same inputs and settings as the parts were done with.
        output: the directory of the data set.
        workers: processes; by default as many as there are cores.
        overwrite: replace a data set that is already in `output`.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        The contents of `dataset.json`.

    Raises:
        UserError: `output` holds a data set already, or somebody else is merging there.
        DataError: units are missing, a split is empty, or the output cannot be written.
    """
    try:
        with alone(Path(output)):
            return _merge(plan, _staging(plan, output), workers, overwrite, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {output}: {reason}; choose a writable directory with enough space") from error


def _merge(plan: Plan, staging: Path, workers: int | None, overwrite: bool, progress: bool) -> DatasetInfo:
    output = staging.parent
    remove_done(output)
    refuse_existing_shards(staging, overwrite)
    records = {unit.number: UnitRecord.load(unit_directory(staging, unit.number)) for unit in plan.units}
    missing = [str(number + 1) for number, record in records.items() if record is None]
    if missing:
        named = ", ".join(missing[:UNITS_IN_MESSAGES]) + (", ..." if len(missing) > UNITS_IN_MESSAGES else "")
        raise DataError(
            f"{len(missing)} of {len(records)} units are missing in {output} ({named}); run the parts that have not "
            "finished with the same inputs and settings, then --merge again"
        )
    done = {number: record for number, record in records.items() if record is not None}
    info = _describe(plan, done)
    shards = {split: _written_shards(plan, staging, done, split) for split in info.splits}
    tokenizer = None if plan.recipe.tokenizer is None else load_tokenizer(plan.recipe.tokenizer)
    if "validation" in shards:
        few = join_small_shards(
            shards["validation"],
            plan.recipe.samples_per_shard,
            staging / "joined" / "validation",
            available_cores() if workers is None else workers,
            progress,
        )
        shards["validation"] = few
        info.splits["validation"] = replace(info.splits["validation"], shards=len(few))
    publish(staging, shards, info, tokenizer)
    return info


def _written_shards(plan: Plan, staging: Path, records: dict[int, UnitRecord], split: str) -> list[WrittenShard]:
    most = plan.recipe.samples_per_shard
    return [
        WrittenShard(unit_directory(staging, number) / split / name, digest, min(most, parts.samples - place * most))
        for number, parts in ((number, record.splits[split]) for number, record in records.items())
        for place, (name, _, digest) in enumerate(parts.shards)
    ]


def _check_kinds(files: Sequence[Path], tokenizer: str | None) -> None:
    """Refuse arrays of tokens that would be taken for bytes, and text without a tokenizer."""
    arrays = next((file for file in files if is_token_file(file)), None)
    if arrays is not None and tokenizer == ByteTokenizer.name:
        raise UserError(
            f"{arrays} holds tokens; give --vocabulary-size, or the tokenizer.json they were made with, and not text "
            "beside them"
        )


def _check_range(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}; give at least {least}")


def _staging(plan: Plan, output: Path) -> Path:
    return staging_directory(Path(output), plan.fingerprint)


def _remove_if_empty(staging: Path) -> None:
    """Leave nothing behind where nothing was done."""
    with suppress(OSError):
        for directory in (staging, staging.parent):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()


def _describe(plan: Plan, records: dict[int, UnitRecord]) -> DatasetInfo:
    recipe = plan.recipe
    splits = {}
    num_classes = 0
    for name in SPLITS:
        parts = [record.splits[name] for record in records.values()]
        totals = {
            what: sum(getattr(part, what) for part in parts) for what in ("documents", "samples", "tokens", "bytes")
        }
        num_classes = max([num_classes, *(part.classes for part in parts)])
        if totals["samples"]:
            splits[name] = SplitInfo(**totals, shards=sum(len(part.shards) for part in parts))
    _check_splits(splits, recipe.validation)
    skipped = Counter({"hidden": plan.hidden, "binary": 0, "empty": 0})
    for record in records.values():
        skipped.update(record.skipped)
    return DatasetInfo(
        tokenizer=None if recipe.tokenizer is None else load_tokenizer(recipe.tokenizer).name,
        vocabulary_size=recipe.vocabulary_size,
        end_token=recipe.end_token,
        seq_len=recipe.seq_len,
        field=TOKENS_FIELD,
        splits=splits,
        skipped=dict(skipped),
        document_field=DOCUMENTS_FIELD if recipe.document_ids else None,
        num_classes=num_classes or None,
    )


def _check_splits(splits: dict[str, SplitInfo], validation: float) -> None:
    documents = {split: splits[split].documents if split in splits else 0 for split in SPLITS}
    total = sum(documents.values())
    if total == 0:
        raise EmptySplit("no document in the inputs: all are empty or binary; give files of text")
    if validation > 0 and documents["validation"] == 0:
        raise EmptySplit(
            f"none of the {total} documents fell into the validation split at a fraction of {validation}; "
            "raise the fraction, give more documents, or pass --validation 0 and prepare validation files separately"
        )
    if documents["train"] == 0:
        raise EmptySplit(f"all {total} documents fell into the validation split; lower --validation {validation}")


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths)) or "an empty list of inputs"
