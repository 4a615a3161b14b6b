"""What a machine lacks for training on it, each with what to do."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

_OPEN_FILES = 4096
_SHARED_MEMORY_GIB = 1.0
_FREE_GIB = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        found: what it is like.
        remedy: what to do about it; None where it is as it should be.
    """

    name: str
    found: str
    remedy: str | None = None


def examine(directory: Path) -> list[Finding]:
    """Look at this machine: environment, versions, devices, compiler, limits and network.

    Args:
        directory: where runs are to be written.
    """
    return [*_software(), *_devices(), *_compiler(), *_limits(), *_places(directory), *_network()]


def _software() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")
    for text in requires("nar_scale") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, "missing", f"pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield Finding(requirement.name, found, None if fits else f"pip install '{requirement}'")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("devices", f"torch cannot be imported: {error}", "install torch again")
        return
    if not torch.cuda.is_available():
        has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
        remedy = "install a torch for the CUDA version of the driver: nvidia-smi shows it" if has_gpu else None
        yield Finding("devices", f"no GPU that torch {torch.__version__} can use; training on the CPU", remedy)
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = (value / 2**30 for value in torch.cuda.mem_get_info(number))
        in_use = free < 0.9 * total
        yield Finding(
            f"GPU {number}",
            f"{properties.name}, {free:.0f} of {total:.0f} GiB free",
            "end what else uses it: nvidia-smi shows the processes" if in_use else None,
        )


def _compiler() -> Iterator[Finding]:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    remedy = None if found else "install a C++ compiler: DeepSpeed compiles parts of itself at the first use"
    yield Finding("C++ compiler", found or "missing", remedy)
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    yield Finding("ninja", ninja or "missing", None if ninja else "pip install ninja")


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= _OPEN_FILES
    remedy = None if enough else f"ulimit -n {min(hard, _OPEN_FILES) if hard > 0 else _OPEN_FILES}"
    yield Finding("open files", _limit(soft), remedy)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    yield Finding("locked memory", _limit(locked))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    yield Finding("CPUs", f"{cores} for this process, of {os.cpu_count()}")
    yield Finding("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")


def _places(directory: Path) -> Iterator[Finding]:
    writable = os.access(directory, os.W_OK)
    free = shutil.disk_usage(directory).free / 2**30
    remedy = None if writable else "choose a directory that can be written"
    if writable and free < _FREE_GIB:
        remedy = "free some space: each checkpoint takes about 12 bytes a parameter"
    yield Finding(str(directory.absolute()), f"{free:.1f} GiB free{'' if writable else ', not writable'}", remedy)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        remedy = "give the container more: --shm-size=8g" if free < _SHARED_MEMORY_GIB else None
        yield Finding(str(shared), f"{free:.1f} GiB free", remedy)


def _network() -> Iterator[Finding]:
    host = socket.gethostname()
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
        loopback = re.match(r"127\.|::1", str(address)) is not None
        yield Finding("host name", f"{host} is {address}{', which other nodes cannot reach' if loopback else ''}")
    except OSError as error:
        yield Finding("host name", f"{host}: {error.strerror}", f"give {host} an address in /etc/hosts or the DNS")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"
