"""The handwritten digits that come with scikit-learn, as a data set of images with classes."""

import shutil
from pathlib import Path

import numpy as np

from nar_scale.data.formats.field_names import TOKENS_FIELD
from nar_scale.data.preparation.publish import find_finished, merge_lock, publish, refuse_existing_shards
from nar_scale.data.preparation.shard_writer import write_shard
from nar_scale.data.preparation.small_shards import WrittenShard
from nar_scale.data.preparation.staging import remove_done, staging_directory
from nar_scale.data.shards.dataset_info import DatasetInfo, SplitInfo
from nar_scale.data.shards.layout import SPLITS
from nar_scale.data.shards.sample_format import Sample
from nar_scale.data.shards.shard_index import index_path, make_shard_index
from nar_scale.errors import DataError, UserError

GREY_LEVELS = 17
NUM_CLASSES = 10


def prepare_digits(output: Path, overwrite: bool = False) -> DatasetInfo:
    """Write the 1797 images of 8 x 8 pixels as shards: 64 tokens each, row by row, and the digit in `cls`.

    A token is a grey level, 0 for paper to 16 for ink. Of the images in scikit-learn's order, those of even number
    are for training and those of odd number for validation.

    Args:
        output: directory for `train/`, `validation/` and `dataset.json`.
        overwrite: replace a data set that is already in `output`.

    Returns:
        The contents of `dataset.json`.

    Raises:
        UserError: scikit-learn is not installed, or `output` holds another data set already.
        DataError: the output cannot be written.
    """
    images, digits = _load_digits()
    staging = staging_directory(Path(output), "digits")
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        with merge_lock(staging.parent):
            remove_done(staging.parent)
            finished = find_finished(staging, overwrite)
            if finished is not None:
                return finished
            refuse_existing_shards(staging, overwrite)
            return _write(images, digits, staging)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}; choose a writable directory") from error


def _write(images: np.ndarray, digits: np.ndarray, staging: Path) -> DatasetInfo:
    written = staging / "shards"
    shutil.rmtree(written, ignore_errors=True)  # what a killed run has left
    splits, shards = {}, {}
    for first, split in enumerate(SPLITS):
        rows = range(first, len(images), len(SPLITS))
        (written / split).mkdir(parents=True)
        shard = written / split / "shard-000000.tar"
        write_shard(shard, ((f"{number:09d}", Sample(images[row], digits[row])) for number, row in enumerate(rows)))
        splits[split] = SplitInfo(len(rows), len(rows), len(rows) * images.shape[1], bytes=0, shards=1)
        index = make_shard_index(str(shard), index_path(str(shard), None))
        shards[split] = [WrittenShard(shard, index.stamp.digest, len(rows))]
    info = DatasetInfo(
        tokenizer=None,
        vocabulary_size=GREY_LEVELS,
        end_token=None,
        seq_len=images.shape[1],
        field=TOKENS_FIELD,
        splits=splits,
        skipped={},
        num_classes=NUM_CLASSES,
    )
    publish(staging, shards, info, tokenizer=None)
    return info


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 `[count, 64]`, and the digits, int64 `[count]`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the digits need scikit-learn: pip install 'nar_scale[digits]'") from None
    data = load_digits()
    return data.data.astype(np.uint8), data.target
