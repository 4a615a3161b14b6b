"""Writing safetensors files one tensor at a time, so that no more than one need be in memory.

The format (https://huggingface.co/docs/safetensors): the length of the header, a header in JSON with dtype, shape and
place of each tensor, and the tensors' bytes. The library writes only tensors that are all in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}
DTYPES_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}
"""The dtypes that are written, by their names in the format."""

_ALIGNMENT = 8

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def tensor_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return dtype.itemsize * torch.Size(shape).numel()


def write_tensors(path: Path, layout: Layout, tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as they come.

    Args:
        layout: name to dtype and shape, in the order of the tensors.
        tensors: one for each name, on any device.

    Raises:
        ValueError: a tensor is not as the layout says, or one is missing.
        OSError: the disk refuses.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + tensor_bytes(dtype, shape)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with open(path, "wb", buffering=0) as file:
        _write(file, len(encoded).to_bytes(8, "little") + encoded)
        for (name, (dtype, shape)), tensor in zip(layout.items(), tensors, strict=True):
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")
            values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            _write(file, values.numpy())


def _write(file: object, values: object) -> None:
    rest = memoryview(values)  # type: ignore[arg-type]
    while rest:
        rest = rest[file.write(rest) :]  # type: ignore[attr-defined]
