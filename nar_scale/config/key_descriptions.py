"""All keys of a YAML file, read off the JSON Schema of `Config`.

Messages about unknown keys, `launcher/train.py --explain` and `docs/config.md` are made of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from nar_scale.config.schema import Config
from nar_scale.config.sections.section import FIXED_ON_RESUME, UNIT

ANY_NAME = "*"
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@dataclass(frozen=True)
class Key:
    """One key of a YAML file.

    Attributes:
        path: its place, such as `training.steps`; `*` is the name of a source or the position in a list.
        type: of its value, such as `integer`, `list of 2 numbers` or `string or null`.
        default: its value where it is not given; None also where it must be given, or is a section.
        required: whether it must be given in its section.
        unit: of a number; None for a pure one.
        allowed: the values or the range that it may have; None for any of the type.
        fixed_on_resume: whether a resumed run must have the value of the checkpoint.
        description: what it means.
        kinds: the kinds of its section that have it; empty for all, or where a section has no kinds.
    """

    path: str
    type: str
    default: Any
    required: bool
    unit: str | None
    allowed: str | None
    fixed_on_resume: bool
    description: str
    kinds: tuple[str, ...] = ()


@cache
def config_reference() -> tuple[Key, ...]:
    """All keys in the order of the sections, each section before its keys."""
    schema = Config.model_json_schema()
    return tuple(_keys_of(schema, schema["$defs"], ""))


def keys_at(location: Sequence[str]) -> list[Key]:
    """The key at a place, such as `data.sources.web.weight`, and those within it; none if there is no such key."""
    return [key for key in config_reference() if _fits(key.path.split("."), location, len(location))]


def discriminator_of(section: str) -> str | None:
    """The key of a section that names its kind: `kind`, or `sampler` of `decoding`; None if it has no kinds."""
    paths = {key.path for key in keys_at([section])}
    return next((name for name in ("kind", "sampler") if f"{section}.{name}" in paths), None)


def nearest_key(location: Sequence[str], kind: str | None = None) -> str:
    """The end of a message on an unknown key: a similar one beside it, the same elsewhere, or what is valid there.

    Args:
        location: of the unknown key.
        kind: of the section that it is in, if the section has kinds.
    """
    keys = {key.path: key for key in config_reference()}
    beside = {
        key.path.split(".")[-1]: key
        for key in keys.values()
        if key.path.count(".") == len(location) - 1 and _fits(key.path.split("."), location, len(location) - 1)
    }
    elsewhere = {path.split(".")[-1]: path for path in keys}
    near = difflib.get_close_matches(location[-1], beside, 1, 0.6)
    if near:
        kinds = beside[near[0]].kinds
        of_kind = f" (of kind {' or '.join(kinds)})" if kinds and kind not in kinds else ""
        return f", did you mean {'.'.join([*location[:-1], near[0]])!r}{of_kind}?"
    if location[-1] in elsewhere:
        return f", did you mean {elsewhere[location[-1]]!r}?"
    valid = sorted(name for name, key in beside.items() if kind is None or not key.kinds or kind in key.kinds)
    return f"; valid here: {', '.join(valid)}" if valid else ""


def _fits(path: Sequence[str], location: Sequence[str], parts: int) -> bool:
    """Whether the first parts of both are the same; a path may be longer."""
    pairs = list(zip(path[:parts], location))
    return len(pairs) == parts and all(name in (ANY_NAME, part) for name, part in pairs)


def _keys_of(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[Key]:
    for name, field in section["properties"].items():
        about = definitions[_name(field)] if "$ref" in field else field
        key = Key(
            path=prefix + name,
            type=_type(field),
            default=field.get("default"),
            required=name in section.get("required", ()),
            unit=field.get(UNIT),
            allowed=_allowed(field),
            fixed_on_resume=field.get(FIXED_ON_RESUME, False),
            description=about.get("description", ""),
        )
        yield key
        if "oneOf" in field:
            kinds = [definitions[_name(kind)] for kind in field["oneOf"]]
            yield from _keys_of_kinds([list(_keys_of(kind, definitions, f"{key.path}.")) for kind in kinds])
        inner, path = field, key.path
        if reference := field.get("items", field.get("additionalProperties")):
            inner, path = (reference if isinstance(reference, dict) else {}), f"{key.path}.{ANY_NAME}"
        if "$ref" in inner:
            yield from _keys_of(definitions[_name(inner)], definitions, f"{path}.")


def _keys_of_kinds(kinds: list[list[Key]]) -> Iterator[Key]:
    """The keys of a section of several kinds, the one that names the kind first, each once."""
    named = {str(keys[0].allowed): keys for keys in kinds}
    first = [keys[0] for keys in kinds]
    default = next((key for key in first if not key.required), first[0])
    meanings = " ".join(f"`{key.allowed}`: {key.description}" for key in first)
    yield replace(default, allowed=", ".join(named), description=meanings)
    others = {key.path: key for keys in kinds for key in keys[1:]}
    for path, key in others.items():
        owners = tuple(kind for kind, keys in named.items() if any(key.path == path for key in keys))
        yield replace(key, kinds=() if len(owners) == len(kinds) else owners)


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rsplit("/", 1)[-1]


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "$ref" in field or "oneOf" in field:
        return "section"
    if field["type"] == "array":
        count = f"{field['minItems']} " if "prefixItems" in field else ""
        return f"list of {count}{_type(_element(field))}s"
    if field["type"] == "object":
        return f"mapping to {_type(field['additionalProperties'])}s" if _element(field) else "mapping"
    return str(field["type"])


def _allowed(field: dict[str, Any]) -> str | None:
    if "anyOf" in field:
        return next((allowed for option in field["anyOf"] if (allowed := _allowed(option))), None)
    values = field.get("enum", [field["const"]] if "const" in field else None)
    if values:
        return ", ".join(map(str, values))
    if element := _element(field):
        return _allowed(element)
    return " and ".join(f"{sign} {field[name]:g}" for name, sign in _BOUNDS.items() if name in field) or None


def _element(field: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of what a list or a mapping holds; empty if it holds anything, or is neither."""
    inner = field.get("items", field.get("prefixItems", [field.get("additionalProperties")])[0])
    return inner if isinstance(inner, dict) else {}
