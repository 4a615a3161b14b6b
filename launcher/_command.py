"""How every script of this directory starts: what keeps it from working is reported in one line, with exit status 2.

To say so where it is started by the wrong Python, this module needs nothing but an old one's standard library.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

OLDEST_PYTHON = (3, 10)
# a launcher kills all ranks when the first ends: those that say nothing let the one that speaks end first
_SECONDS_FOR_THE_FIRST_RANK = 30.0


def run(main: Callable[[], int]) -> int:
    """Call `main` of a script, which takes its arguments from the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a letter that the terminal lacks is no reason to end
    try:
        if sys.version_info < OLDEST_PYTHON:
            version, oldest = (".".join(map(str, v)) for v in (sys.version_info[:2], OLDEST_PYTHON))
            return _refuse(f"Python {version} ({sys.executable}) is too old, {oldest} is needed; {_remedy()}")
        return main()
    except ModuleNotFoundError as error:
        return _refuse(f"{sys.executable} lacks the module {error.name!r}; {_remedy()}")
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename2 or error.filename}: {error.strerror}")
    except SystemExit as end:
        if end.code and not _is_first_rank():
            time.sleep(_SECONDS_FOR_THE_FIRST_RANK)
        raise


def _refuse(problem: str) -> int:
    if _is_first_rank():
        print(f"{Path(sys.argv[0]).stem}: error: {problem}", file=sys.stderr)
    else:
        time.sleep(_SECONDS_FOR_THE_FIRST_RANK)
    return 2


def _is_first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _remedy() -> str:
    python = Path(__file__).absolute().parents[1] / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != python.parents[1]:
        return f"use {python}"
    return "run `make install`, and use .venv/bin/python"
