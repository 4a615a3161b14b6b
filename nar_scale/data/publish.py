"""The place where a data set is written, and how it appears only when all of it is there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nar_scale.data.info import INFO_FILE, DatasetInfo
from nar_scale.data.tokenizer import TOKENIZER_FILE, Tokenizer
from nar_scale.errors import DataError, UserError

SHARD_NAME = "shard-{:06d}.tar"
SHARD_FILES = ("shard-*.tar", "shard-*.tar*.index")
SPLITS = ("train", "validation")


def refuse_existing_shards(output: Path) -> None:
    """Protect a data set from being overwritten.

    Raises:
        UserError: `output` holds one, or parts of one.
    """
    if (output / INFO_FILE).exists():
        raise UserError(f"{output} already holds a data set; choose another output or pass --overwrite to replace it")
    if any(_shard_files(output)):
        raise UserError(
            f"{output} holds shards but no {INFO_FILE}; choose another output or pass --overwrite to replace them"
        )


@contextmanager
def staging_directory(output: Path) -> Iterator[Path]:
    """An empty directory inside `output`, removed in the end, as is `output` itself if it is new and stays empty.

    Raises:
        DataError: an OSError in the body of the `with` statement.
    """
    staging = output / ".prepare"
    output_is_new = not output.exists()
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {output}: {reason}; choose a writable directory with enough space") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if output_is_new and output.is_dir() and not any(output.iterdir()):
            output.rmdir()


def publish(staging: Path, output: Path, info: DatasetInfo, tokenizer: Tokenizer | None) -> None:
    """Move the shards of `staging/SPLIT` into place, in exchange for what `output` holds.

    Raises:
        OSError: `output` cannot be written.
    """
    # The old dataset.json goes first and the new one comes last: at no moment does it describe other shards.
    (output / INFO_FILE).unlink(missing_ok=True)
    for old_file in _shard_files(output):
        old_file.unlink()
    (output / TOKENIZER_FILE).unlink(missing_ok=True)
    for split in info.splits:
        (output / split).mkdir(exist_ok=True)
        for shard in sorted((staging / split).iterdir()):
            os.replace(shard, output / split / shard.name)
    if tokenizer is not None:
        tokenizer.save(output)
    info.save(output)


def _shard_files(output: Path) -> list[Path]:
    return [file for split in SPLITS for pattern in SHARD_FILES for file in (output / split).glob(pattern)]
