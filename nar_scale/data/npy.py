"""Reading small `.npy` arrays from memory, fast and without pickle."""

import io
from functools import lru_cache

import numpy as np

PREAMBLE_BYTES = 8
HEADER_LENGTH_BYTES = {1: 2, 2: 4}


def decode_npy(content: bytes) -> np.ndarray:
    """Return the array in the bytes of a `.npy` file, read-only.

    Args:
        content: the whole file.

    Raises:
        ValueError: these are not the bytes of a `.npy` file, some are missing, or the array holds Python objects.
    """
    if content[:6] != b"\x93NUMPY" or len(content) < PREAMBLE_BYTES:
        raise ValueError("it is not a .npy file")
    length_bytes = HEADER_LENGTH_BYTES.get(content[6])
    if length_bytes is None:
        raise ValueError(f"its .npy format version {content[6]} is unknown")
    text_start = PREAMBLE_BYTES + length_bytes
    data_start = text_start + int.from_bytes(content[PREAMBLE_BYTES:text_start], "little")
    shape, fortran_order, dtype = _parse_header(content[:data_start])
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are not read")
    count = int(np.prod(shape, dtype=np.int64))
    if len(content) < data_start + count * dtype.itemsize:
        raise ValueError("it ends in the middle of its data")
    array = np.frombuffer(content, dtype, count, data_start)
    return array.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=1024)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    # Parsing costs several times as much as the rest, and most samples of a data set share one header.
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"its .npy format version {version} is unknown")
