"""Writing one WebDataset shard of samples, the same bytes every time."""

import io
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from nar_scale.data.info import CLASS_FIELD, TOKENS_FIELD


def write_shard(
    path: Path, tokens: np.ndarray, sequence_length: int, first_sample: int, classes: np.ndarray | None = None
) -> None:
    """Write a tar with one `<key>.tokens.npy` per sample; the key is the number of the sample, "%09d".

    Args:
        path: the tar file, overwritten.
        tokens: unsigned integers [n], cut into samples of `sequence_length`; the last may be shorter.
        sequence_length: tokens in a sample.
        first_sample: number of the shard's first sample in its split.
        classes: integers [samples], written as text beside the tokens, in `<key>.cls`.

    Raises:
        OSError: the file cannot be written.
    """
    from webdataset import TarWriter

    with open(path, "wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="nar_scale", group="nar_scale") as writer:
            for row, start in enumerate(range(0, len(tokens), sequence_length)):
                sample = tokens[start : start + sequence_length]
                header = _npy_header(sample.dtype.str, len(sample))
                members = {"__key__": f"{first_sample + row:09d}", TOKENS_FIELD: header + sample.tobytes()}
                if classes is not None:
                    members[CLASS_FIELD] = str(int(classes[row])).encode()
                writer.write(members)
        file.flush()
        os.fsync(file.fileno())


@lru_cache(maxsize=16)
def _npy_header(dtype: str, length: int) -> bytes:
    # np.save spends most of its time on this header, and nearly every sample of a shard has the same one.
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": (length,)})
    return stream.getvalue()
