"""Gathers in a directory what a GPU machine without network lacks: wheels and a small prepared data set.

What is there already and still wanted is kept, so that a second time is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from benchmarks.gpu.environment import KitError
from benchmarks.gpu.machine import commit
from benchmarks.gpu.stage import ROOT

MAX_BYTES = 40 * 2**20
# pinned in constraints.txt; deepspeed is published as source alone
WHEELS = (
    "annotated-types",
    "braceexpand",
    "deepspeed",
    "einops",
    "einx",
    "frozendict",
    "hjson",
    "loguru",
    "pydantic",
    "pydantic-core",
    "tenacity",
    "torch-einops-utils",
    "typing-extensions",
    "typing-inspection",
    "webdataset",
    "x-transformers",
)
BUILT = "deepspeed"
# what wheels of the kit and nar_scale need and a GPU machine brings along with torch
ALREADY_THERE = (
    "filelock",
    "jinja2",
    "markupsafe",
    "msgpack",
    "ninja",
    "numpy",
    "packaging",
    "pillow",
    "psutil",
    "py-cpuinfo",
    "pyyaml",
    "safetensors",
    "sympy",
    "tensorboard",
    "torch",
    "tqdm",
    "xxhash",
)
TARGET = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux", "extra": ""}
DOCUMENTS, SEQUENCE_LENGTH = 80, 2048


def pins(names: Iterable[str], constraints: Path) -> dict[str, str]:
    """The version of each package in a file of constraints.

    Raises:
        KitError: a package has none.
    """
    versions = dict(line.split("==") for line in constraints.read_text().split() if "==" in line)
    found: dict[str, str] = {canonicalize_name(name): version for name, version in versions.items()}
    for name in names:
        if name not in found:
            raise KitError(f"{constraints} pins no version of {name}, which the kit needs")
    return {name: found[name] for name in names}


def gather_wheels(wanted: dict[str, str], wheels: Path) -> list[str]:
    """Bring the wheels of these versions for CPython 3.12 on x86-64 Linux, and remove others; returns what was new.

    Raises:
        KitError: pip failed, or a wheel that is built here depends on this machine.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    there: dict[str, Path] = {}
    for path in wheels.glob("*.whl"):
        name, version, _, _ = parse_wheel_filename(path.name)
        if wanted.get(str(name)) == str(version):
            there[name] = path
        else:
            path.unlink()
    missing = [name for name in wanted if name not in there]
    published = [f"{name}=={wanted[name]}" for name in missing if name != BUILT]
    if published:
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(17, 29)]
        target = ["--python-version=3.12", "--implementation=cp", "--abi=cp312", "--platform=manylinux2014_x86_64"]
        _pip("download", "--only-binary=:all:", *target, *platforms, "--dest", str(wheels), *published)
    if BUILT in missing:
        _pip("wheel", "--no-build-isolation", "--wheel-dir", str(wheels), f"{BUILT}=={wanted[BUILT]}")
        if not list(wheels.glob(f"{BUILT}-{wanted[BUILT]}-py3-none-any.whl")):
            raise KitError(f"the wheel of {BUILT} in {wheels} is not one of pure Python; remove it")
    return missing


def _pip(verb: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", *arguments]
    # DeepSpeed compiles its kernels on the machine that uses them
    environment = {**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise KitError(f"pip {verb} failed, see above")


def unmet(wheels: Path) -> list[str]:
    """What nar_scale and the wheels need that neither a wheel nor the GPU machine has, `needed by` included."""
    available = {
        name: str(version) for name, version, *_ in (parse_wheel_filename(p.name) for p in wheels.glob("*.whl"))
    }
    lacking = []
    for source, requirements in {**dict(map(_requirements, wheels.glob("*.whl"))), "nar_scale": _own()}.items():
        for requirement in map(Requirement, requirements):
            if requirement.marker and not requirement.marker.evaluate(TARGET):
                continue
            name = canonicalize_name(requirement.name)
            fits = name in available and requirement.specifier.contains(available[name], prereleases=True)
            if not fits and name not in ALREADY_THERE:
                lacking.append(f"{requirement} (for {source})")
    return sorted(lacking)


def _requirements(wheel: Path) -> tuple[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        message = message_from_bytes(archive.read(metadata))
    return wheel.name.split("-")[0], message.get_all("Requires-Dist", [])


def _own() -> list[str]:
    section = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert section is not None
    return re.findall(r'"([^"]+)"', section[1])


def gather_data(directory: Path, documents: int = DOCUMENTS, seq_len: int = SEQUENCE_LENGTH) -> bool:
    """Prepare the first so many files of the standard library as bytes; whether that was still to be done."""
    description = directory / "dataset.json"
    if description.exists():
        there = json.loads(description.read_text())
        if (there["seq_len"], sum(split["documents"] for split in there["splits"].values())) == (seq_len, documents):
            return False
    from nar_scale.data import prepare  # loads torch

    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "__pycache__"}
    sources = (path.relative_to(library) for path in library.rglob("*.py") if path.stat().st_size)
    files = [library / path for path in sorted(sources) if not left_out & set(path.parts)]
    prepare(
        files[:documents], directory, seq_len=seq_len, document_ids=True, validation=0.1, progress=False, overwrite=True
    )
    return True


def size(directory: Path) -> int:
    """The bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def gather(kit: Path) -> str:
    """Bring a kit up to date; returns what there is to say.

    Raises:
        KitError: something could not be had, is missing, or the kit is too large to travel.
    """
    new = gather_wheels(pins(WHEELS, ROOT / "constraints.txt"), kit / "wheels")
    lacking = unmet(kit / "wheels")
    if lacking:
        raise KitError(f"no wheel for {', '.join(lacking)}; add it to WHEELS in {Path(__file__).name}")
    if gather_data(kit / "data"):
        new.append("data")
    (kit / "COMMIT").write_text(commit(ROOT) + "\n")
    total = size(kit)
    if total > MAX_BYTES:
        raise KitError(f"{kit} has {total / 2**20:.1f} MiB, more than the {MAX_BYTES >> 20} MiB that can travel")
    parts = ", ".join(f"{name} {size(kit / name) / 2**20:.1f} MiB" for name in ("wheels", "data"))
    return f"{kit}: {parts}; new: {', '.join(new) or 'nothing'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / ".gpu", metavar="DIR", help="default: .gpu")
    try:
        print(gather(parser.parse_args().output))
    except KitError as error:
        print(f"gpu-kit: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
