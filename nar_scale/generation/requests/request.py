"""A request: what is to be generated, from a prompt or from scratch."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nar_scale.errors import UserError

GAP = re.compile(r"<mask(?::0*([0-9]+))?>")
"""A gap in a text; its group has the number of tokens."""

STANDARD_INPUT = "-"
_FORMS = '{"prompt": "..."}, {"text": "... <mask:8> ..."} or {"class": 3}'
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "prompt": ((str,), "a string"),
    "text": ((str,), "a string"),
    "class": ((int,), "an integer"),
    "id": ((str, int, float, type(None)), "a string or a number"),
}


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    Attributes:
        number: index among all requests, of which its random numbers are a function.
        prompt: text to continue, or None.
        text: text with gaps to fill in, or None; `<mask>` is a gap of one token, `<mask:8>` of eight.
        class_id: class of the sequence, or None.
        id: the user's own name for the request, which its result repeats, or None.
        file: where it was read, or None.
        line: its line there, from 1, or None.
        fault: why nothing can be generated for it, or None; such a request needs no prompt, text or class.
    """

    number: int
    prompt: str | None = None
    text: str | None = None
    class_id: int | None = None
    id: str | float | None = None
    file: Path | None = None
    line: int | None = None
    fault: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The request as a line of results holds it: with its number, and for a faulty one with its line."""
        line = None if self.fault is None else self.line
        fields = {"number": self.number, "id": self.id, "line": line, "error": self.fault}
        fields |= {"prompt": self.prompt, "text": self.text, "class": self.class_id}
        return {name: value for name, value in fields.items() if value is not None}


def read_requests(path: str | Path) -> list[Request]:
    """Read prompts, one JSON object a line: `{"prompt": "..."}`, `{"text": "... <mask:8> ..."}` or `{"class": 3}`.

    A prompt or a text may have a class too, and each line an `id`. Lines end at a line feed alone; blank ones do not
    count. A line that is not such an object becomes a request with a `fault`.

    Args:
        path: the file, or `-` for the standard input.

    Raises:
        UserError: the file cannot be read, or holds no prompts.
    """
    from_input = str(path) == STANDARD_INPUT
    path = Path("standard input") if from_input else Path(path)
    try:
        content = sys.stdin.buffer.read() if from_input else path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the prompts {path}: {error.strerror}") from None
    requests: list[Request] = []
    for line_number, line in enumerate(content.split(b"\n"), 1):
        if not is_blank(line):
            requests.append(parse_line(line, len(requests), path, line_number))
    if not requests:
        raise UserError(f"{path} holds no prompts")
    return requests


def requests_for(texts: Sequence[str]) -> list[Request]:
    """A request for each text: to fill in its gaps, such as `<mask:8>`, or where it has none, to continue it."""
    return [
        Request(number, text=text) if GAP.search(text) else Request(number, prompt=text)
        for number, text in enumerate(texts)
    ]


def samples_from_scratch(count: int) -> list[Request]:
    """This number of requests without a prompt."""
    return [Request(number) for number in range(count)]


def is_blank(line: bytes) -> bool:
    """Whether a line of a file of prompts does not count."""
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def parse_line(line: bytes, number: int, path: Path, line_number: int | None) -> Request:
    """The request of a JSON object, or one with a fault.

    Args:
        line: the object.
        number: of the request.
        path: where it was read.
        line_number: its line there, if it is one.
    """
    try:
        fields = _read_fields(line)
    except UserError as error:
        return Request(number, file=path, line=line_number, fault=str(error))
    return request_of(fields, number, path, line_number)


def request_of(fields: dict[str, Any], number: int, path: Path, line_number: int | None) -> Request:
    """The request of the fields of an object, or one with a fault; arguments as for `parse_line`."""
    fault = _find_fault(fields)
    known = {name: fields[name] for name in _KINDS if name in fields and _fault_of(name, fields[name]) is None}
    return Request(
        number, known.get("prompt"), known.get("text"), known.get("class"), known.get("id"), path, line_number, fault
    )


def _read_fields(line: bytes) -> dict[str, Any]:
    """The JSON object of a line, with or without a byte order mark before it.

    Raises:
        UserError: it is something else.
    """
    try:
        fields = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start + 1} is not UTF-8; save the prompts as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"this is not JSON ({error.msg}, character {error.pos + 1}); expected {_FORMS}") from None
    except (ValueError, RecursionError):
        raise UserError(f"this JSON is nested too deeply, or has too long a number; expected {_FORMS}") from None
    if not isinstance(fields, dict):
        raise UserError(f"this is no JSON object; expected {_FORMS}")
    return fields


def _find_fault(fields: dict[str, Any]) -> str | None:
    """What is wrong with the fields of a line, in a few words; None if nothing is."""
    if not {"prompt", "text", "class"} & set(fields) or {"prompt", "text"} <= set(fields):
        return f"expected {_FORMS}"
    return next((fault for name in _KINDS if name in fields and (fault := _fault_of(name, fields[name]))), None)


def _fault_of(name: str, value: Any) -> str | None:
    types, kind = _KINDS[name]
    if type(value) not in types:
        return f"the {name!r} is not {kind}"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"the {name!r} holds half of a surrogate pair, which is no character"
    return None
