"""What a result was measured on and with. Only reads; needs nothing but Python."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("torch", "triton", "deepspeed", "x-transformers", "transformers", "einops", "einx", "numpy", "pydantic")
_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each GPU that nvidia-smi lists; none where there is no such program."""
    keys = ("name", "memory.total", "driver_version", "power.limit")
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return [dict(zip(keys, row)) for row in rows if len(row) == len(keys)]


def hardware() -> dict[str, object]:
    """The GPUs, the processor, its cores and the memory in GiB."""
    processor = platform.processor()
    with open("/proc/cpuinfo") as lines:
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "gpus": gpus(),
        "processor": models[0] if models else processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
    }


def versions(variables: Mapping[str, str]) -> dict[str, str | None]:
    """The versions of Python and of the packages that a process with these environment variables gets."""
    command = [sys.executable, "-c", _VERSIONS, *PACKAGES]
    done = subprocess.run(command, env=dict(variables), stdout=subprocess.PIPE, text=True, check=True)
    return {"python": platform.python_version(), **json.loads(done.stdout)}


def commit(root: Path, kit: Path | None = None) -> str:
    """The commit of the repository, followed by `-dirty` where the tree differs from it.

    Where git cannot say, what `make gpu-kit` noted in the kit; "unknown" if that is not there either.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain=v2", "--branch"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        lines = done.stdout.splitlines() if done.returncode == 0 else []
    except FileNotFoundError:
        lines = []
    if lines:
        changed = any(not line.startswith("#") for line in lines)
        return lines[0].removeprefix("# branch.oid ") + ("-dirty" if changed else "")
    noted = kit / "COMMIT" if kit else None
    return noted.read_text().strip() if noted and noted.exists() else "unknown"
