"""Turning a corpus into a data set of WebDataset shards, on one machine or many."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import get_args

from nar_scale.data.formats.copies import are_copies
from nar_scale.data.formats.documents import DEFAULT_TEXT_FIELD
from nar_scale.data.formats.inputs import is_token_file
from nar_scale.data.parallel import available_cores, ordered_map
from nar_scale.data.preparation.corpus import Corpus, find_corpus
from nar_scale.data.preparation.merge import KEPT, EmptySplit, merge_work_items
from nar_scale.data.preparation.plan import Plan, Recipe, check_least, make_plan
from nar_scale.data.preparation.publish import find_finished, refuse_existing_shards
from nar_scale.data.preparation.skipped import Skipped, refuse_too_many
from nar_scale.data.preparation.staging import discard, plan_directory, remove_done
from nar_scale.data.preparation.work_item import prepare_work_item, remove_leftovers
from nar_scale.data.shards.dataset_info import DatasetInfo
from nar_scale.data.tokenizers import ByteTokenizer, SpecialTokens, Tokenizer, load_tokenizer, tokenizer_file
from nar_scale.errors import DataError, UserError
from nar_scale.progress import kept_at_interrupt, progress_bar

MIN_UNIT_BYTES = 1 << 22
MAX_COMPARED = 1000  # pairs of files with the same stem


def prepare(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: object,
) -> DatasetInfo:
    """Turn a corpus into a data set: `plan_dataset`, all work items, and `merge_work_items`.

    A run that was killed continues where it was when it is started again with the same arguments, and one that was
    finished returns what is there.

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
        UserError: an argument is out of range, or `output` holds another data set already.
        DataError: an input is missing or unreadable, a split would be empty, or the output cannot be written.
    """
    paths = [Path(each) for each in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    output = Path(output)
    plan = plan_dataset(paths, output, workers=workers, **settings)  # type: ignore[arg-type]
    staging = plan_directory(plan, output)
    try:
        prepare_work_items(plan, output, workers=workers, overwrite=overwrite, progress=progress)
        return merge_work_items(plan, output, workers, overwrite, progress)
    except EmptySplit:
        discard(staging)  # to continue from here would end in the same way
        raise
    finally:
        _remove_if_empty(staging)


def plan_dataset(
    inputs: Sequence[Path],
    output: Path,
    *,
    seq_len: int,
    tokenizer: str | None = "byte",
    end_token: str | None = None,
    special_tokens: SpecialTokens = "text",
    vocabulary_size: int | None = None,
    text_field: str = DEFAULT_TEXT_FIELD,
    packed: bool = True,
    document_ids: bool = False,
    as_text: Sequence[str] = (),
    max_skipped: int | None = None,
    validation: float = 0.01,
    validation_inputs: Sequence[Path] = (),
    include: str = "*",
    exclude: Sequence[str] = (),
    samples_per_shard: int = 8192,
    unit_bytes: int | None = None,
    workers: int | None = None,
) -> Plan:
    """Cut a corpus into work items, the same on every machine that sees the same files.

    In sorted order the documents of a work item are encoded, each followed by an end token, concatenated, and cut every
    `seq_len` tokens; the last sample of an item and split may be shorter. Documents go to the validation split by the
    hash of their content; where there are too few, the last part of each does.

    Args:
        inputs: files, and folders walked recursively; hidden files are skipped. Formats: see `read_piece`.
        output: the directory of the data set, in which no input is looked for.
        seq_len: tokens in a sample, at least 2.
        tokenizer: "byte", or a Hugging Face `tokenizer.json` file; None where the input is tokens of no tokenizer.
        end_token: name of the token of the file that ends a document, if it is not one of those of
            `HuggingFaceTokenizer`.
        special_tokens: "text" or "ids", how special tokens that a text spells out are encoded, see
            `HuggingFaceTokenizer`.
        vocabulary_size: number of token ids where there is no tokenizer.
        text_field: the key, column or field that holds the text, in formats that have such.
        packed: concatenate documents; otherwise each is a sample of its own, and a longer one is cut into several.
        document_ids: write which document each token belongs to, in `documents.npy`.
        as_text: globs on the names of files that are one document of text, whatever they look like.
        max_skipped: most documents and files, hidden and excluded ones aside, that may be left out; None for any.
        validation: expected fraction of the documents in the validation split, in `[0, 1)`; 0 writes no such split.
        validation_inputs: files and folders of which all documents go to the validation split, and no others.
        include: glob on the names of files in folders.
        exclude: globs on the parts of paths below a folder, such as "site-packages".
        samples_per_shard: most samples in a tar file.
        unit_bytes: bytes of input in a work item; by default those of about four shards of bytes.
        workers: processes that look at the inputs; by default as many as there are cores.

    Raises:
        UserError: an argument is out of range or does not go with another.
        DataError: an input is missing or unreadable, or there is none.
    """
    workers = available_cores() if workers is None else workers
    unit_bytes = max(4 * samples_per_shard * seq_len, MIN_UNIT_BYTES) if unit_bytes is None else unit_bytes
    check_least(1, workers=workers, vocabulary_size=vocabulary_size)
    check_least(0, max_skipped=max_skipped)
    encoder = _encoder(tokenizer, vocabulary_size, end_token, special_tokens)
    recipe = Recipe(
        seq_len=seq_len,
        tokenizer=tokenizer if tokenizer in (None, ByteTokenizer.name) else str(Path(tokenizer).resolve()),
        tokenizer_fingerprint="" if encoder is None else encoder.fingerprint,
        vocabulary_size=int(vocabulary_size or 0) if encoder is None else encoder.vocabulary_size,
        end_token=None if encoder is None else encoder.end_token,
        special_tokens=special_tokens,
        text_field=text_field,
        validation=0.0 if validation_inputs else validation,
        packed=packed,
        document_ids=document_ids,
        as_text=tuple(as_text),
        samples_per_shard=samples_per_shard,
        unit_bytes=unit_bytes,
    )
    corpus = _corpus(inputs, include, exclude, output, recipe)
    own = _corpus(validation_inputs, include, exclude, output, recipe, corpus) if validation_inputs else None
    return make_plan(corpus, recipe, max_skipped, workers, own)


def _corpus(
    inputs: Sequence[Path],
    include: str,
    exclude: Sequence[str],
    output: Path,
    recipe: Recipe,
    other: Corpus | None = None,
) -> Corpus:
    """The files to read, none of which is in another corpus, checked as far as they can be before they are read."""
    own = [] if recipe.tokenizer in (None, ByteTokenizer.name) else [tokenizer_file(str(recipe.tokenizer))]
    corpus = find_corpus([Path(path) for path in inputs], include, exclude, [output, *own], recipe.as_text)
    files = [file for file in corpus.files if file.resolve() not in own]  # those given by name are taken
    corpus = replace(corpus, files=files)
    if not corpus.files:
        names = ", ".join(map(str, inputs)) or "an empty list of inputs"
        skipped = f", but {corpus.skipped}" if corpus.skipped.counts else ""
        raise DataError(f"no file to read in {names}{skipped}; check the paths and the include and exclude patterns")
    _refuse_tokens_as_bytes(corpus.files, recipe.tokenizer)
    _refuse_copies(corpus, recipe)
    if other is not None:
        _refuse_common_files(other, corpus)
    return corpus


def prepare_work_items(
    plan: Plan,
    output: Path,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """Do the work items of one part that are not done, each in one of several processes.

    Any number of machines that share `output` may do parts, also the same part.

    Args:
        plan: from `plan_dataset`.
        output: the directory of the data set.
        part: (I, N): every N-th work item from the I-th on, counted from 1.
        workers: processes; by default as many as there are cores.
        overwrite: a data set that is already in `output` is to be replaced.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        The number of work items in the part.

    Raises:
        UserError: there is no such part, or `output` holds another data set already.
        DataError: an input cannot be read, or the output cannot be written.
    """
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"part is {part[0]}/{part[1]}; give I/N with I from 1 to N")
    work_items = plan.part(*part)
    staging = plan_directory(plan, output)
    remove_done(staging.parent)
    if find_finished(staging, overwrite) is not None:
        return len(work_items)
    refuse_existing_shards(staging, overwrite)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        remove_leftovers(staging)
        tasks = [(work_item, plan.recipe, staging) for work_item in work_items]
        workers = min(available_cores() if workers is None else workers, max(len(work_items), 1))
        size = sum(work_item.size for work_item in work_items)
        with kept_at_interrupt(KEPT.format(output)), progress_bar("prepare", size, "B", progress) as bar:
            skipped = Skipped()
            skipped.update(plan.skipped)
            for work_item, record in zip(work_items, ordered_map(prepare_work_item, tasks, workers)):
                bar.update(work_item.size)
                skipped.update(record.skipped)
                refuse_too_many(skipped, plan.max_skipped)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {output}: {reason}; choose a writable directory with enough space") from error
    return len(work_items)


def _encoder(
    tokenizer: str | None, vocabulary_size: int | None, end_token: str | None, special_tokens: SpecialTokens
) -> Tokenizer | None:
    if (tokenizer is None) == (vocabulary_size is None):
        raise UserError("give a tokenizer, or for input that is tokens of no tokenizer a vocabulary size")
    if special_tokens not in get_args(SpecialTokens):
        raise UserError(f"special tokens are {special_tokens!r}; give {' or '.join(get_args(SpecialTokens))}")
    if special_tokens == "ids" and tokenizer in (None, ByteTokenizer.name):
        raise UserError("special tokens as ids go with a tokenizer.json; without one no text is taken for a token")
    if tokenizer is not None:
        return load_tokenizer(tokenizer, end_token=end_token, special_tokens=special_tokens)
    if end_token is not None:
        raise UserError(f"end token {end_token!r} is the name of a token of a tokenizer; give the tokenizer too")
    return None


def _refuse_tokens_as_bytes(files: Sequence[Path], tokenizer: str | None) -> None:
    """Refuse arrays of tokens where the tokenizer is for bytes."""
    arrays = next((file for file in files if is_token_file(file)), None)
    if arrays is not None and tokenizer == ByteTokenizer.name:
        raise UserError(
            f"{arrays} holds tokens; give --vocabulary-size, or the tokenizer.json they were made with, and not text "
            "beside them"
        )


def _refuse_common_files(corpus: Corpus, validation_corpus: Corpus) -> None:
    """Refuse files that are to be trained on and validated on."""
    train = {file.resolve() for file in corpus.files}
    common = next((file for file in validation_corpus.files if file.resolve() in train), None)
    if common is not None:
        raise UserError(f"{common} is in --input and in --validation-input; exclude it from one of them")


def _refuse_copies(corpus: Corpus, recipe: Recipe) -> None:
    compared = corpus.same_stem[:MAX_COMPARED]
    copies = [pair for pair in compared if are_copies(*pair, recipe.text_field, recipe.as_text)]
    if not copies:
        return
    first, second = copies[0]
    pairs, pairs_of_copies, files = (
        sum(file.suffix == second.suffix for file in some)
        for some in ((pair[1] for pair in corpus.same_stem), (pair[1] for pair in copies), corpus.files)
    )
    is_kind = len(copies) > 1 and 2 * pairs_of_copies > len(compared) and 2 * pairs > files
    name = f"*{second.suffix}" if is_kind else escape(second.name)
    number = f"; {len(copies):,} pairs of {len(compared):,} compared do" if len(copies) > 1 else ""
    raise DataError(
        f"{first} and {second.name} beside it hold the same documents in two formats{number}; leave out one, as by "
        f"--exclude {shlex.quote(name)}, or to read both give them by their names"
    )


def _remove_if_empty(staging: Path) -> None:
    """Remove the directories in which nothing was written."""
    with suppress(OSError):
        for directory in (staging, staging.parent):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
