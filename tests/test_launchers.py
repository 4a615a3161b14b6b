"""The scripts check their arguments before they import what takes seconds."""

import importlib
import sys
from pathlib import Path
from subprocess import run
from typing import get_args

import pytest

from nar_scale.checkpoint import WeightKind
from nar_scale.decoding import Sampler

LAUNCHER = Path(__file__).parents[1] / "launcher"
SCRIPTS = sorted(path.stem for path in LAUNCHER.glob("*.py"))
# runs a script with arguments that end it at once, and prints which libraries that has loaded
LOADED = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    loaded = {name.split(".")[0] for name in sys.modules}
    print("loaded:", *sorted(loaded & {"torch", "numpy", "pydantic", "deepspeed"}))
"""


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--no-such-option"], 2)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_are_checked_before_torch_is_imported(script, arguments, status):
    path = str(LAUNCHER / f"{script}.py")
    code = f"import sys; sys.argv = {[path, *arguments]!r}\n{LOADED}"
    result = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == status, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded:"
    if status:
        assert "--no-such-option" in result.stderr or "required" in result.stderr


def choices_of(script, option):
    """What a script's help says an option takes."""
    help_text = run([sys.executable, str(LAUNCHER / f"{script}.py"), "--help"], capture_output=True, text=True).stdout
    return help_text.split(f"--{option} {{")[1].split("}")[0].split(",")


@pytest.mark.parametrize(
    ("script", "option", "kind"),
    [
        ("generate", "sampler", Sampler),
        ("generate", "weights", WeightKind),
        ("evaluate", "weights", WeightKind),
        ("export", "weights", WeightKind),
    ],
)
def test_choices_are_those_of_the_library(script, option, kind):
    assert tuple(choices_of(script, option)) == get_args(kind)


def test_every_script_is_importable_as_a_function():
    for script in SCRIPTS:
        assert callable(importlib.import_module(f"launcher.{script}").main)
