"""Reading small arrays in the `.npy` format from memory, fast and without pickle."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

PREAMBLE_BYTES = 8
HEADER_LENGTH_BYTES = {1: 2, 2: 4}
MAX_HEADER_BYTES = 1 << 16


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    items: int


def decode_npy(content: bytes) -> np.ndarray:
    """Return the array that the bytes of a `.npy` file hold, read-only, of the stored dtype and shape.

    Args:
        content: the whole file, format version 1.0 or 2.0 (numpy.lib.format).

    Raises:
        ValueError: these are not the bytes of a `.npy` file, some are missing, or the array holds Python objects.
    """
    if content[:6] != b"\x93NUMPY" or len(content) < PREAMBLE_BYTES:
        raise ValueError("it is not a .npy file")
    if content[6] not in HEADER_LENGTH_BYTES:
        raise ValueError(f"its .npy format version {content[6]} is unknown")
    header_bytes = _header_of(content)
    data_start = len(header_bytes)
    header = _parse_header(header_bytes[:MAX_HEADER_BYTES])
    if len(content) < data_start + header.items * header.dtype.itemsize:
        raise ValueError("it ends in the middle of its data")
    array = np.frombuffer(content, header.dtype, header.items, data_start)
    if len(header.shape) == 1:
        return array
    return array.reshape(header.shape, order="F" if header.fortran_order else "C")


def decode_uniform(contents: Sequence[bytes]) -> np.ndarray | None:
    """Decode several `.npy` files with the same header at once, much faster than one by one.

    Args:
        contents: the whole files, at least one.

    Returns:
        The one-dimensional arrays as one, `[files, n]` of their dtype; None if their headers differ or they have
        another number of dimensions.

    Raises:
        ValueError: the first is not a `.npy` file; see `decode_npy`.
    """
    first, size = decode_npy(contents[0]), len(contents[0])
    header = _header_of(contents[0])
    if first.ndim != 1 or size != len(header) + first.nbytes:
        return None
    if not all(len(content) == size and content.startswith(header) for content in contents):
        return None
    files = np.frombuffer(b"".join(contents), np.uint8).reshape(len(contents), size)
    return files[:, len(header) :].view(first.dtype)


def _header_of(content: bytes) -> bytes:
    text_start = PREAMBLE_BYTES + HEADER_LENGTH_BYTES[content[6]]
    return content[: text_start + int.from_bytes(content[PREAMBLE_BYTES:text_start], "little")]


@lru_cache(maxsize=1024)
def _parse_header(header: bytes) -> _Header:
    # Parsing costs several times as much as the rest, and most samples of a data set share one header.
    stream = io.BytesIO(header)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"its .npy format version {version} is unknown")
    try:
        shape, fortran_order, dtype = read[version](stream)
    except Exception as error:  # numpy lets all kinds of errors through, and its own advice to trust the file
        raise ValueError("its .npy header is damaged") from error
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are not read")
    items = math.prod(shape)
    if any(type(length) is not int or not 0 <= length < 2**63 for length in shape) or items >= 2**63:
        raise ValueError("its shape is impossible, or negative")
    return _Header(shape, fortran_order, dtype, items)
