"""Which format a file of text has: by its name where that tells it, by its content where it does not."""

import codecs
import json
import re
from pathlib import Path
from types import ModuleType

from nar_scale.data.formats.text import json_values, jsonl, plain_text, tables
from nar_scale.data.formats.text.decompression import open_content, split_name

# by the end of the name without that of the compression
SUFFIXES: dict[str, ModuleType] = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".jsonlines": jsonl,
    ".csv": tables,
    ".tsv": tables,
}
HEAD_BYTES = 1 << 16
STRING = rb'"(?:[^"\\]|\\.)*"'
OBJECT = rb"\{\s*" + STRING + rb"\s*:"
JSON_START = re.compile(rb"\s*(?:\[\s*)?" + OBJECT + rb"|\s*\[\s*" + STRING + rb"\s*[,\]]", re.DOTALL)
LATER_LINE = re.compile(r"[ \t\r]*\n\s*\S")


def text_format(file: Path) -> ModuleType:
    """Return the module that reads a file of text.

    A file begins like JSON if it does with an object that has a key, or with an array of such objects or of strings.

    Raises:
        DataError: the file cannot be read, or is compressed and damaged.
    """
    name, _ = split_name(file.name)
    for suffix, module in SUFFIXES.items():
        if name.endswith(suffix):
            return module
    with open_content(file) as content:
        head = content.file.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
    if not (name.endswith(".json") or JSON_START.match(head)):
        return plain_text
    return jsonl if _is_in_lines(head) else json_values


def _is_in_lines(head: bytes) -> bool:
    """Return whether a file begins with an object in one line, and goes on in a later line."""
    text = head.decode("utf-8", errors="replace").lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "\n" not in text[:end] and LATER_LINE.match(text, end) is not None
