"""A text that appears in a terminal while it is generated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import groupby
from typing import TextIO

from nar_scale.checkpoint import LoadedModel
from nar_scale.errors import UserError
from nar_scale.generation.requests import Request
from nar_scale.text import printable

PLACEHOLDER = "_"
_UP, _CLEAR_BELOW = "\x1b[{}A\r", "\x1b[J"


class LiveText:
    """Draws the text of a sequence after each network call, in place of the one before.

    Where the output is no terminal, each call has a line of its own: its number, and the text with line breaks escaped.

    Args:
        model: whose sequences are shown.
        output: where to; a terminal or anything else.

    Raises:
        UserError: the model has no tokenizer.
    """

    def __init__(self, model: LoadedModel, output: TextIO):
        if model.tokenizer is None:
            raise UserError("--watch needs texts, but the checkpoint names no tokenizer; set data.tokenizer")
        self._tokenizer, self._mask_id = model.tokenizer, model.info.decode.mask_id
        self._output, self._in_place = output, output.isatty()
        self._rows = 0

    def __call__(self, request: Request, tokens: list[int], call: int) -> None:
        """Show a sequence after a network call; see `nar_scale.generation.sampling.Watch`."""
        text = self._text(tokens)
        if self._in_place:
            self._redraw(text)
        else:
            self._output.write(f"{call:>4} {printable(text)}\n")
        self._output.flush()

    def clear(self) -> None:
        """Make room for the finished text."""
        if self._in_place:
            self._output.write(self._home())
            self._rows = 0

    def _text(self, tokens: list[int]) -> str:
        parts = groupby(tokens, key=lambda token: token == self._mask_id)
        return "".join(self._shown(list(group), masked) for masked, group in parts)

    def _shown(self, tokens: list[int], masked: bool) -> str:
        return PLACEHOLDER * len(tokens) if masked else self._tokenizer.decode(tokens)

    def _redraw(self, text: str) -> None:
        size = shutil.get_terminal_size()
        rows = list(_rows(text, size.columns))
        visible = rows[max(0, len(rows) - (size.lines - 1)) :]  # what has scrolled away cannot be drawn again
        self._output.write(self._home() + "".join(f"{row}\n" for row in visible))
        self._rows = len(visible)

    def _home(self) -> str:
        return (_UP.format(self._rows) if self._rows else "") + _CLEAR_BELOW


def _rows(text: str, columns: int) -> Iterator[str]:
    """The rows of a terminal that a text takes, without characters that would move its cursor."""
    for line in text.expandtabs(4).split("\n"):
        safe = printable(line)
        for start in range(0, max(1, len(safe)), columns):
            yield safe[start : start + columns]
