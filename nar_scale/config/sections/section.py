"""What all sections have in common, and what can be said of a key beside its type, default and description."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def _without_tilde(path: str) -> str:
    """Expand `~` and `~USER`, as a shell does for what it reads itself, but not within a file or after `=`."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"no home directory is known for {path.split('/')[0]!r}; write it out, or ./{path} for a name")
    return expanded


LocalPath = Annotated[str, AfterValidator(_without_tilde)]
"""The path of a file or directory, or a URL."""

UNIT, FIXED_ON_RESUME = "x-unit", "x-fixed-on-resume"  # keywords of the JSON Schema


class Section(BaseModel):
    """Base of every section: no unknown keys, no silent conversion between types, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class Kind(Section):
    """Base of the sections that have several kinds, each with keys of its own.

    A subclass narrows `kind` to its name; the kind that a file need not name has that as the default.
    """

    kind: str


@dataclass(frozen=True)
class Unit:
    """The unit of a number, as metadata of its field: `Annotated[PositiveInt, Unit("tokens")]`."""

    name: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The JSON Schema of the field with its unit."""
        return handler(schema) | {UNIT: self.name}


@dataclass(frozen=True)
class FixedOnResume:
    """Metadata of a field that must not change between a checkpoint and a run that is resumed from it."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The JSON Schema of the field with a mark."""
        return handler(schema) | {FIXED_ON_RESUME: True}


@dataclass(frozen=True)
class Operational:
    """Metadata of a field, or of a section, that says how or where a run is done and has no part in what it learns.

    Another value changes the weights by the order of floating-point sums at most. What is read from another place is
    compared when a run is resumed, by its fingerprint.
    """


def reads_all_kinds(kinds: Any, ignored: frozenset[str] = frozenset()) -> BeforeValidator:
    """Let a section of several kinds leave out the default kind, and repeat the defaults of other kinds.

    Configurations saved before each kind had a class of its own hold the keys of all kinds. Those that mean nothing to
    the kind of the section are dropped where they have their default; others stay, to be refused as unknown.

    Args:
        kinds: the union of the classes.
        ignored: keys that are dropped whatever their value, since they have never been refused.
    """
    classes = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(kinds)}
    defaults = {
        name: field.default
        for kind in classes.values()
        for name, field in kind.model_fields.items()
        if not field.is_required()
    }
    default_kind = next((name for name, kind in classes.items() if not kind.model_fields["kind"].is_required()), None)

    def read(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if default_kind is not None:
            values = {"kind": default_kind, **values}
        own = next((kind.model_fields for name, kind in classes.items() if name == values.get("kind")), defaults)
        foreign = {name: default for name, default in defaults.items() if name not in own}
        unused = {name for name in foreign if name in values and (name in ignored or values[name] == foreign[name])}
        return {name: value for name, value in values.items() if name not in unused}

    return BeforeValidator(read)
