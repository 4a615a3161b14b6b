"""The keys of a YAML file as text: one that is asked for, all as a page, or as the JSON Schema that editors read.

python -m nar_scale.config.reference > docs/config.md
python -m nar_scale.config.reference --json-schema > configs/schema.json
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator

from nar_scale.config.key_descriptions import Key, config_reference, discriminator_of, keys_at, nearest_key
from nar_scale.config.schema import Config
from nar_scale.errors import ConfigError

_WIDTH = 100
_HEAD = """\
# Configuration reference

Made by `python -m nar_scale.config.reference > docs/config.md` from `nar_scale/config/sections`: edit there.

A key is written `section.key` on the command line (`training.steps=200`) and below its section in a YAML file. `*` is
the name of a source or the position in a list. A run cannot be resumed from a checkpoint with another value of a key
that is marked as fixed. A kind that the command line chooses, such as `optimizer.kind=adamw`, leaves out the keys of
the file that it does not have. `launcher/train.py --explain KEY` prints the entry of a key or of a section. With the
line

    # yaml-language-server: $schema=PATH/TO/configs/schema.json

at the top of a YAML file, editors that know JSON Schema check it and complete its keys.
"""


def explain(key: str) -> str:
    """What is known of a key or of a section with its keys, to be printed on a terminal.

    Raises:
        ConfigError: there is no such key; the nearest one is named.
    """
    location = key.split(".")
    found = keys_at(location)
    if not found:
        wrong = next(location[:parts] for parts in range(1, len(location) + 1) if not keys_at(location[:parts]))
        raise ConfigError(f"unknown key {'.'.join(wrong)!r}{nearest_key(wrong)}")
    return "\n\n".join(_entry(each) for each in found)


def section_names() -> str:
    """The sections of a YAML file and what is in each, to be printed on a terminal."""
    sections = [key for key in config_reference() if "." not in key.path]
    return "\n".join([*(f"{key.path:12} {key.description}" for key in sections), "", "explain SECTION.KEY says more"])


def reference_page() -> str:
    """All keys as a Markdown page, a table for each section."""
    return _HEAD + "".join(_sections())


def json_schema() -> str:
    """The JSON Schema (draft 2020-12) of a YAML file, with the units and what is fixed on resume as `x-` keywords."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def _entry(key: Key) -> str:
    indent = "  "
    meaning = textwrap.fill(key.description, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    facts = [_default(key), *([f"unit: {key.unit}"] if key.unit else []), *_remarks(key)]
    return f"{key.path}: {_values(key)}\n{meaning}\n{indent}{'; '.join(facts)}"


def _sections() -> Iterator[str]:
    for key in config_reference():
        if "." not in key.path:
            yield f"\n## {key.path}\n\n{key.description}\n"
            first = True
            continue
        if first:
            yield "\n| key | values | unit | default | meaning |\n|---|---|---|---|---|\n"
            first = False
        remarks = "".join(f" *{remark[0].upper()}{remark[1:]}.*" for remark in _remarks(key))
        default = _default(key).removeprefix("default: ")
        cells = (f"`{key.path.partition('.')[2]}`", _values(key), key.unit or "", default, key.description + remarks)
        yield f"| {' | '.join(cells)} |\n"


def _values(key: Key) -> str:
    return key.type + (f": {key.allowed}" if key.allowed else "")


def _default(key: Key) -> str:
    return "required" if key.required else f"default: {json.dumps(key.default)}"


def _remarks(key: Key) -> list[str]:
    discriminator = discriminator_of(key.path.partition(".")[0])
    kinds = [f"only for {discriminator} {' and '.join(key.kinds)}"] if key.kinds else []
    return [*kinds, *(["fixed on resume"] if key.fixed_on_resume else [])]


if __name__ == "__main__":
    sys.stdout.write(json_schema() if sys.argv[1:] == ["--json-schema"] else reference_page())
