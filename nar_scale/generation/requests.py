"""What is to be generated: prompts from a file, or samples from scratch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from nar_scale.data import Tokenizer
from nar_scale.errors import UserError

_GAP = re.compile(r"<mask(?::(\d+))?>")


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    Attributes:
        number: place among all requests; makes its random numbers its own.
        prompt: text to continue, or None.
        text: text with gaps `<mask>` or `<mask:8>` to fill in (8 tokens), or None.
    """

    number: int
    prompt: str | None = None
    text: str | None = None


def read_requests(path: str | Path) -> list[Request]:
    """Read prompts, one JSON object a line: `{"prompt": "..."}` or `{"text": "... <mask:8> ..."}`.

    Raises:
        UserError: the file cannot be read, or a line is not such an object; the line is named.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts {path}: {error}") from None
    requests = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise UserError(f"{path} holds no prompts")
    return [Request(number, request.prompt, request.text) for number, request in enumerate(requests)]


def samples_from_scratch(count: int) -> list[Request]:
    """Requests without any prompt."""
    return [Request(number) for number in range(count)]


def fill_gaps(text: str, tokenizer: Tokenizer, mask_id: int) -> list[int]:
    """Token ids of a text, each gap as that many mask tokens."""
    tokens: list[int] = []
    end = 0
    for gap in _GAP.finditer(text):
        tokens += tokenizer.encode(text[end : gap.start()].encode()).tolist()
        tokens += [mask_id] * int(gap[1] or 1)
        end = gap.end()
    return tokens + tokenizer.encode(text[end:].encode()).tolist()


def _parse(path: str | Path, line_number: int, line: str) -> Request:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or len({"prompt", "text"} & set(fields)) != 1:
        raise UserError(f'{path}, line {line_number}: expected {{"prompt": "..."}} or {{"text": "... <mask:8> ..."}}')
    values = {name: fields[name] for name in ("prompt", "text") if name in fields}
    if not all(isinstance(value, str) for value in values.values()):
        raise UserError(f"{path}, line {line_number}: the {next(iter(values))!r} is not a string")
    return Request(0, **values)
