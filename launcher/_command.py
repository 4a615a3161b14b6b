"""How every script of this directory starts: what keeps it from working is reported in one line, with exit status 2.

To say so where it is started by the wrong Python, this module needs nothing but an old one's standard library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from io import TextIOWrapper
from pathlib import Path

OLDEST_PYTHON = (3, 10)
_ROOT = Path(__file__).absolute().parents[1]


def run(main: Callable[[], int], ranks: bool = False) -> int:
    """Call `main` of a script, which takes its arguments from the command line; returns the exit status.

    Args:
        ranks: the processes that were started together are ranks of one job, which tell an error once; others are
            tasks of their own.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a letter that the terminal lacks is no reason to end
    try:
        if sys.version_info >= OLDEST_PYTHON:
            return main()
        version, oldest = (".".join(map(str, v)) for v in (sys.version_info[:2], OLDEST_PYTHON))
        problem = f"Python {version} ({sys.executable}) is too old, {oldest} is needed; {_remedy()}"
    except ModuleNotFoundError as error:
        problem = f"{sys.executable} lacks the module {error.name!r}; {_remedy()}"
    except OSError as error:
        if error.filename is None:
            raise
        problem = f"{error.filename2 or error.filename}: {error.strerror}"
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        problem = end.code
    if ranks:
        _wait_for_first_rank()
    print(f"{Path(sys.argv[0]).stem}: error: {problem}", file=sys.stderr)
    return 2


def _wait_for_first_rank() -> None:
    """As `nar_scale.first_rank`, without the package around it, which this Python may lack the modules for."""
    spec = spec_from_file_location("first_rank", _ROOT / "nar_scale" / "first_rank.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.wait_for_first_rank()


def _remedy() -> str:
    python = _ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != python.parents[1]:
        return f"use {python}"
    return "run `make install`, and use .venv/bin/python"
