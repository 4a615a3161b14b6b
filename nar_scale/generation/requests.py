"""Requests: what is to be generated, from prompts in a file or from scratch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nar_scale.data import Tokenizer
from nar_scale.errors import UserError

_GAP = re.compile(r"<mask(?::(\d+))?>")


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    Attributes:
        number: index among all requests, of which its random numbers are a function.
        prompt: text to continue, or None.
        text: text with gaps to fill in, or None; `<mask>` is a gap of one token, `<mask:8>` of eight.
        class_id: class of the sequence, or None.
    """

    number: int
    prompt: str | None = None
    text: str | None = None
    class_id: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The request as a line of prompts holds it, with its number."""
        fields = {"number": self.number, "prompt": self.prompt, "text": self.text, "class": self.class_id}
        return {name: value for name, value in fields.items() if value is not None}


def read_requests(path: str | Path) -> list[Request]:
    """Read prompts, one JSON object a line: `{"prompt": "..."}`, `{"text": "... <mask:8> ..."}` or `{"class": 3}`.

    A prompt or a text may have a class too.

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
    return [replace(request, number=number) for number, request in enumerate(requests)]


def samples_from_scratch(count: int) -> list[Request]:
    """This number of requests without a prompt."""
    return [Request(number) for number in range(count)]


def assign_classes(requests: Sequence[Request], num_classes: int | None) -> list[Request]:
    """Give requests from scratch the classes in turn, and check the classes of all others.

    Args:
        requests: of all workers.
        num_classes: of the model; None if it is not conditional on a class.

    Raises:
        UserError: a class that the model does not have, or a prompt without a class for a model that needs one.
    """
    return [_assign_class(request, num_classes) for request in requests]


def fill_gaps(text: str, tokenizer: Tokenizer, mask_id: int) -> list[int]:
    """The token ids of a text, in which each gap is as many mask tokens as it says (see `Request`)."""
    tokens: list[int] = []
    end = 0
    for gap in _GAP.finditer(text):
        tokens += tokenizer.encode(text[end : gap.start()].encode()).tolist()
        tokens += [mask_id] * int(gap[1] or 1)
        end = gap.end()
    return tokens + tokenizer.encode(text[end:].encode()).tolist()


def _assign_class(request: Request, num_classes: int | None) -> Request:
    class_id = request.class_id
    if num_classes is None:
        if class_id is not None:
            raise UserError(f"a prompt asks for class {class_id}, but the model is not conditional on a class")
        return request
    if class_id is None:
        asked = request.prompt if request.text is None else request.text
        if asked is not None:
            raise UserError(f'the prompt {asked!r:.60} has no class; add "class": 0..{num_classes - 1} to its line')
        return replace(request, class_id=request.number % num_classes)
    if not 0 <= class_id < num_classes:
        raise UserError(f"a prompt asks for class {class_id}, which is outside the model's 0..{num_classes - 1}")
    return request


def _parse(path: str | Path, line_number: int, line: str) -> Request:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    asked = {"prompt", "text", "class"} & set(fields) if isinstance(fields, dict) else set()
    if not asked or {"prompt", "text"} <= asked:
        forms = '{"prompt": "..."}, {"text": "... <mask:8> ..."} or {"class": 3}'
        raise UserError(f"{path}, line {line_number}: expected {forms}")
    for name in sorted(asked):
        kind, article = (int, "an integer") if name == "class" else (str, "a string")
        if type(fields[name]) is not kind:
            raise UserError(f"{path}, line {line_number}: the {name!r} is not {article}")
    return Request(0, fields.get("prompt"), fields.get("text"), fields.get("class"))
