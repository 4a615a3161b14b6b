"""What a device does at best, from the results of the GPU kit in place of the data sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nar_scale.errors import UserError
from nar_scale.planning.cost.devices import Device
from nar_scale.planning.cost.throughput import Ceilings

_OF_MEASURED = 0.85  # what products of a model's shapes, between other kernels, reach of a large one by itself
_PRODUCT, _COPY, _TO_HOST = "bf16 matrix product, sustained", "copy", "copy to the host"


def measured_ceilings(path: Path, device: Device) -> Ceilings:
    """The ceilings that the first stage of `benchmarks/gpu` has written into `facts.json`.

    Raises:
        UserError: the file cannot be read, lacks a measurement, or is of another kind of device.
    """
    try:
        content = json.loads(path.read_text())
        values: dict[str, Any] = {each["name"]: each["value"] for each in content["measurements"]}
        product, copy, to_host = (float(values[name]) for name in (_PRODUCT, _COPY, _TO_HOST))
        name = str(values["device"])
    except OSError as error:
        raise UserError(f"cannot read the measurements {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no measurements of a device ({error!r}); give the facts.json that benchmarks/gpu.sh wrote"
        ) from error
    if device.torch_name not in name:
        raise UserError(f"{path} was measured on {name}, not on {device.name}; give --device or another file")
    return Ceilings(
        matrix_flops=product * 1e12 * _OF_MEASURED,
        memory_bandwidth=copy * 1e12,
        peak_flops=device.peak_flops,
        host_bandwidth=to_host * 1e9,
        source=f"{path}: {product:.0f} TFLOP/s in a product, of which {_OF_MEASURED:.0%} assumed, {copy:.2f} TB/s",
    )
