"""Loads `nar_scale.commands.process`, with which every script starts, where the package around it cannot be."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def run_command(name: str) -> None:
    """Run the command of this name with the arguments of this process, and end with its status."""
    file = Path(__file__).absolute().parents[1] / "nar_scale" / "commands" / "process.py"
    spec = spec_from_file_location("process", file)
    assert spec is not None
    assert spec.loader is not None
    process = module_from_spec(spec)
    spec.loader.exec_module(process)
    process.run_command(name)
