"""Where a run is trained: the machine and the versions of the software, for its record."""

from __future__ import annotations

import json
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from nar_scale.files import write_atomically

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("nar_scale", "torch", "deepspeed", "numpy", "webdataset", "safetensors")
_GIBIBYTE = 2**30


def describe_environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """The machine of this rank and the versions of the software, by name, for JSON.

    Args:
        device: of this rank.
        ranks: of the run.
    """
    on_gpu = device.type == "cuda"
    described: dict[str, Any] = {
        "host": socket.gethostname(),
        "ranks": ranks,
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "cpu_cores": psutil.cpu_count(),
        "host_memory_gib": round(psutil.virtual_memory().total / _GIBIBYTE, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if on_gpu:
        described["gpu_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / _GIBIBYTE, 1)
        described["cuda"] = torch.version.cuda
    return {**described, **{package: _version(package) for package in _PACKAGES}}


def write_environment(directory: Path, device: torch.device, ranks: int, parameters: int) -> None:
    """Write `environment.json` of a run: the environment of its last start, and the number of parameters.

    Args:
        directory: of the run.
        device: of this rank.
        ranks: of the run.
        parameters: of the model.

    Raises:
        OSError: the directory cannot be written.
    """
    content = {"parameters": parameters, **describe_environment(device, ranks)}
    write_atomically(directory / ENVIRONMENT_FILE, (json.dumps(content, indent=2) + "\n").encode())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a directory that was never installed
        return None


def _processor() -> str:
    """The model of the processor; only its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
