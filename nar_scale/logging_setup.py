"""Logging to the terminal: this package's messages are shown, those of libraries only from errors on."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

# what moves the cursor, sets colours and titles or answers back, and what turns the direction of writing
_TERMINAL_COMMANDS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


class TerminalHandler(logging.Handler):
    """Writes messages alone: warnings and errors to standard error, all others to standard output, flushed at once.

    What a terminal would take for commands is escaped.

    Attributes:
        beside_bar: a `with` block for writing to a stream while a progress bar is on the terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beside_bar: Callable[[TextIO], AbstractContextManager[object]] = nullcontext

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            with self.beside_bar(stream):
                stream.write(for_terminal(self.format(record)) + "\n")
                stream.flush()
        except Exception:
            self.handleError(record)


_HANDLER = TerminalHandler()


def set_up_logging() -> None:
    """Show what the loggers below `nar_scale` log, from INFO on, on the terminal; for scripts, not for libraries.

    From then on, characters that the terminal's encoding lacks are printed as escapes such as `\\xb1`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("nar_scale")
    if _HANDLER not in logger.handlers:
        logger.addHandler(_HANDLER)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def write_result(text: str) -> None:
    """Write the result of a script to the standard output; a reader that has enough of it, such as head, is no error.

    Where that is a terminal, what it would take for commands is escaped; a file or a pipe gets the text as it is.

    Raises:
        OSError: the standard output, which may be a file, cannot be written.
    """
    try:
        sys.stdout.write(f"{for_terminal(text) if sys.stdout.isatty() else text}\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes when Python ends
        if not isinstance(error, BrokenPipeError):
            raise


def report_error(command: str, problem: object) -> int:
    """Log what keeps a command from working, in one line that begins with its name; returns its exit status, 2."""
    logging.getLogger(__name__).error("%s: error: %s", command, problem)
    return 2


def for_terminal(text: str) -> str:
    """Return a text of several lines with what a terminal takes for commands escaped; line feeds and tabs stay."""
    return _TERMINAL_COMMANDS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def terminal_handler() -> TerminalHandler:
    """The one handler for the terminal, whether or not `set_up_logging` has installed it."""
    return _HANDLER


def silence_libraries() -> None:
    """Silence the warnings and logs of torch, DeepSpeed and TensorBoard; errors still come through."""
    os.environ["DS_ACCELERATOR"] = _accelerator()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.utils import logger

    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # which prints
    logger.setLevel(logging.ERROR)  # and not that of its handlers, which others may use for their loggers too
    threading.excepthook = _leave_tensorboard_to_main_thread


def _leave_tensorboard_to_main_thread(problem: threading.ExceptHookArgs) -> None:
    """Report nothing that TensorBoard's thread cannot write: the next call of its writer raises it again."""
    if type(problem.thread).__module__.split(".")[0] != "tensorboard":
        threading.__excepthook__(problem)


def _accelerator() -> str:
    """DeepSpeed warns when it has to find out by itself."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
