"""Settings of the command line, `section.key=value`, which win over those of a YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from nar_scale.config.former_keys import current_key
from nar_scale.config.key_descriptions import config_reference
from nar_scale.config.yaml_text import read_yaml
from nar_scale.errors import ConfigError

COMMAND_LINE = "command line"
"""What messages call the origin of an override."""


def apply_override(values: dict[str, Any], override: str) -> str:
    """Put a setting into nested dictionaries.

    Args:
        values: of the file, which are changed.
        override: `section.key=value`, where the value is YAML.

    Returns:
        the key, as it is called now.

    Raises:
        ConfigError: it has no section or no value, or the value is not valid YAML.
    """
    given, separator, value = override.partition("=")
    key = current_key(given)
    *sections, name = key.split(".")
    shown = f"{COMMAND_LINE}: {override!r:.80}"
    if not separator or not sections or not name:
        raise ConfigError(f"{shown} is not of the form section.key=value{_hint(given, value)}")
    for section in sections:
        if values.get(section) is None:  # also one whose keys are all commented out
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"{shown}: {section!r} is not a section")
    values[name] = read_yaml(value, shown)
    return key


def overrides_behind(location: str, keys: Sequence[str]) -> tuple[bool, list[str]]:
    """Which overrides a problem of a configuration comes from.

    Args:
        location: of the problem, such as `training.steps`, or `model` for keys of it that do not fit each other.
        keys: of the overrides.

    Returns:
        whether it is the value of an override, and, if not, the overrides that may have a part in it.
    """
    if any(f"{location}.".startswith(f"{key}.") for key in keys):
        return True, []
    return False, [key for key in keys if not location or key.startswith(f"{location}.")]


def _hint(given: str, value: str) -> str:
    """The end of a message on what has no section or no value: what may have been meant."""
    paths = [key.path for key in config_reference()]
    value = value or "VALUE"
    if any(path.startswith(f"{given}.") for path in paths):
        return f", since {given} is a section: name one of its keys, {given}.KEY={value}"
    if given in paths:
        return f", did you mean {f'{given}={value}'!r}?"
    names = {path.split(".")[-1] for path in paths if path.count(".") == 1}
    near = difflib.get_close_matches(given.split(".")[-1], names, 1, 0.8)
    # several sections may have it; most often the length of a run is meant
    found = sorted((path for path in paths if near and path.endswith(f".{near[0]}")), key=_is_not_training)
    return f", did you mean {' or '.join(repr(f'{path}={value}') for path in found[:2])}?" if found else ""


def _is_not_training(path: str) -> bool:
    return not path.startswith("training.")
