"""How a command runs as a process: what keeps it from working is reported in one line, with exit status 2.

To say so where it is started by the wrong Python, this module needs nothing but an old one's standard library, and
can be loaded without the package.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

OLDEST_PYTHON = (3, 10)
INTERRUPTED = 130  # the exit status of what Ctrl-C has ended, as shells have it
_PACKAGE = Path(__file__).absolute().parents[1]


class Parser(argparse.ArgumentParser):
    """The parser of a command's arguments, which answers a wrong one in a single line, without the usage."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the original; notes what was given."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with status 2."""
        self.exit(2, f"{command_name(self.prog)}: error: {self.problem(message)}; see --help\n")

    def problem(self, message: str) -> str:
        """What is wrong, with the nearest name to one that does not exist.

        An option that does not exist is named rather than the one that it may have stood for, which is missing then.
        Those that exist are those of the help.
        """
        options = re.findall(r"--[a-z][\w-]*", self.format_help())
        given = [word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--"]
        unknown = [word for word in given if not any(option.startswith(word) for option in options)]
        if unknown and "required" in message:
            message = f"unrecognized arguments: {' '.join(unknown)}"
        if unknown and message.startswith("unrecognized arguments"):
            return message + _nearest(unknown[0], options)
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        return message + (_nearest(choice[1], re.findall(r"[\w.-]+", choice[2])) if choice else "")


def _nearest(word: str, words: Iterable[str]) -> str:
    found = get_close_matches(word, words, 1)
    return f"; did you mean {found[0]}?" if found else ""


def command_name(program: str) -> str:
    """What the messages of a command begin with: `generate`, as `nar-scale generate` and as launcher/generate.py.

    Args:
        program: as usage names it, or a path; subcommands behind it are left out.
    """
    name = Path(program).name.removeprefix("nar-scale ")
    return name.partition(" ")[0].removesuffix(".py")


def run_command(name: str) -> None:
    """Run `main` of a module of `nar_scale.commands` with the arguments of this process, and end with its status.

    Args:
        name: the module, such as "train".
    """
    # Ranks that were started together tell an error once; the other commands are processes of their own.
    ranks = name == "train"
    status = exit_status(lambda: import_module(f"nar_scale.commands.{name}").main(), ranks)
    if ranks:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # tearing down a process group whose peers have failed can abort or hang
    sys.exit(status)


def exit_status(main: Callable[[], int], ranks: bool = False) -> int:
    """Call `main`, which takes its arguments from the command line, and report what it lacks.

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
    except KeyboardInterrupt as interrupt:
        kept = f"; {interrupt}" if interrupt.args else ""
        start = "\n" if sys.stderr.isatty() else ""  # the terminal has written ^C
        sys.stderr.write(f"{start}{command_name(sys.argv[0])}: interrupted{kept}\n")
        return INTERRUPTED
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        problem = end.code
    if ranks:
        _wait_for_first_rank()
    sys.stderr.write(f"{command_name(sys.argv[0])}: error: {problem}\n")
    return 2


def _wait_for_first_rank() -> None:
    """As `nar_scale.first_rank`, without the package around it, which this Python may lack the modules for."""
    spec = spec_from_file_location("first_rank", _PACKAGE / "first_rank.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.wait_for_first_rank()


def _remedy() -> str:
    repository = _PACKAGE.parent
    if not (repository / "Makefile").exists():  # installed by pip
        return "install nar_scale again, with `pip install`"
    python = repository / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != python.parents[1]:
        return f"use {python}"
    return "run `make install`, and use .venv/bin/python"
