"""A new environment from the wheels of the kit, in front of what the interpreter has already. Needs no network."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename


class KitError(Exception):
    """The kit does not fit this machine; the message is one line for the user."""


def make_environment(wheels: Path, directory: Path, python_path: Path) -> tuple[dict[str, str], list[str]]:
    """Install the wheels that fit this interpreter; those that don't must be installed in it already.

    Packages of the interpreter, such as torch, stay visible behind the new ones. This needs no `venv`: an interpreter
    that itself belongs to a virtual environment would not show that one's packages in a new one.

    Args:
        wheels: the directory of wheels.
        directory: where to install them; made here.
        python_path: where the programs to be run are, in front of all.

    Returns:
        The variables that a process needs to run in the environment, and the names of the packages that were taken
        from the interpreter since their wheels don't fit.

    Raises:
        KitError: a package is missing, or pip failed.
    """
    tags = frozenset(sys_tags())
    fitting: list[str] = []
    surrounding: list[str] = []
    for wheel in sorted(wheels.glob("*.whl")):
        name, _, _, wheel_tags = parse_wheel_filename(wheel.name)
        if tags & wheel_tags:
            fitting.append(str(wheel))
        else:
            surrounding.append(name)
    for package in surrounding:
        _require(package, wheels)
    if fitting:
        options = ["--no-index", "--no-deps", "--no-compile", "--no-warn-script-location", "--target", str(directory)]
        command = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", *options, *fitting]
        # no configuration file, which might name an index or constraints
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise KitError(f"pip could not install the wheels of {wheels}: {done.stdout.strip().splitlines()[-1:]}")
    scripts = [str(directory / "bin"), str(Path(sys.executable).parent)]
    variables = {
        "PYTHONPATH": os.pathsep.join((str(python_path), str(directory))),
        "PATH": os.pathsep.join((*scripts, os.environ.get("PATH", os.defpath))),
    }
    return variables, surrounding


def _require(name: str, wheels: Path) -> None:
    try:
        version(name)
    except PackageNotFoundError:
        python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        raise KitError(
            f"the wheel of {name} in {wheels} does not fit {python}, which has no {name} of its own"
        ) from None
