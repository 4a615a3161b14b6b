"""Keys of version 0.1 that have another place now: files and overrides that have them are still read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FORMER = {("objective", "steps"): ("decoding", "steps"), ("objective", "guidance_scale"): ("decoding", "guidance")}
# of an autoregressive run, to which they mean nothing, but whose saved configuration has them
_UNUSED = {"steps": 18, "guidance_scale": 1.0}


def current_key(key: str) -> str:
    """The key as it is called now, `section.key`."""
    section, _, name = key.partition(".")
    return ".".join(_FORMER.get((section, name), (key,)))


def move_former_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file with each former key in its present place.

    Args:
        values: sections by name; what is no section is left as it is.

    Raises:
        ValueError: a key is given in both places, with different values.
    """
    moved = dict(values)
    for (section, name), (new_section, new_name) in _FORMER.items():
        old, new = moved.get(section), moved.get(new_section) or {}
        if not isinstance(old, Mapping) or name not in old or not isinstance(new, Mapping):
            continue
        value = old[name]
        moved[section] = {key: kept for key, kept in old.items() if key != name}
        if old.get("kind") == "autoregressive" and value == _UNUSED[name]:
            continue
        if new.get(new_name, value) != value:
            raise ValueError(
                f"{section}.{name} {value!r} is the former name of {new_section}.{new_name}, which is "
                f"{new[new_name]!r}; leave {section}.{name} out"
            )
        moved[new_section] = {**new, new_name: value}
    return moved
