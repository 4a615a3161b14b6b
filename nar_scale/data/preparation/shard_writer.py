"""Writing samples as one WebDataset shard, the same bytes every time."""

import io
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD, DOCUMENTS_FIELD, TOKENS_FIELD
from nar_scale.data.shards.sample_format import Sample


def write_shard(path: Path, samples: Iterable[tuple[str, Sample]]) -> None:
    """Write a tar with `<key>.tokens.npy` for each sample, and `<key>.cls` and `<key>.documents.npy` where it has them.

    Args:
        path: the tar file, overwritten.
        samples: keys and samples, in order.

    Raises:
        OSError: the file cannot be written.
    """
    from webdataset import TarWriter

    with open(path, "wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="nar_scale", group="nar_scale") as writer:
            for key, sample in samples:
                members = {"__key__": key, TOKENS_FIELD: _npy(sample.tokens)}
                if sample.label is not None:
                    members[CLASS_FIELD] = str(sample.label).encode()
                if sample.documents is not None:
                    members[DOCUMENTS_FIELD] = _npy(sample.documents)
                writer.write(members)
        file.flush()
        os.fsync(file.fileno())


def _npy(array: np.ndarray) -> bytes:
    return _npy_header(array.dtype.str, len(array)) + array.tobytes()


@lru_cache(maxsize=64)
def _npy_header(dtype: str, length: int) -> bytes:
    # np.save spends most of its time on this header, and nearly every sample of a shard has the same one.
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": (length,)})
    return stream.getvalue()
