"""From a YAML file and `section.key=value` overrides to a `Config`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nar_scale.config.former_keys import move_former_keys
from nar_scale.config.key_descriptions import discriminator_of, keys_at, nearest_key
from nar_scale.config.overrides import COMMAND_LINE, apply_override, overrides_behind
from nar_scale.config.schema import Config
from nar_scale.config.yaml_text import read_yaml
from nar_scale.errors import ConfigError
from nar_scale.text import message_of


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a YAML file; whether a run can start with it is for `check_run` to say.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings, applied over the file; values are YAML. Where they choose another kind,
            such as `optimizer.kind=adamw`, the keys of the file that this kind does not have are left out.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; one line for each problem.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read the config file {path}: it is not text in UTF-8") from None
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as 'model:' and 'training:', found {values!r:.60}")
    values = _with_present_keys(values, str(path))
    keys = [apply_override(values, override) for override in overrides]
    _leave_out_other_kinds(values, keys)
    return validate_config(values, str(path), f"runs/{path.stem}", keys)


def override_config(config: Config | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A configuration with some settings replaced.

    Args:
        config: complete, or its sections as nested dictionaries.
        overrides: as in `load_config`.

    Raises:
        ConfigError: a key or value is wrong.
    """
    given = config.model_dump() if isinstance(config, Config) else copy.deepcopy(dict(config))
    values = _with_present_keys(given, "the configuration")
    for override in overrides:
        apply_override(values, override)
    return validate_config(values, source="the configuration")


def validate_config(
    values: dict[str, Any],
    source: str,
    default_run_directory: str | None = None,
    overridden: Sequence[str] = (),
) -> Config:
    """Turn nested dictionaries into a `Config`.

    Args:
        values: keys by section.
        source: names their origin in error messages.
        default_run_directory: where the values have none.
        overridden: keys whose values are from the command line, which is then named instead.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a missing key or a wrong value.
    """
    sections = Config.model_fields.keys()
    values = {key: {} if value is None and key in sections else value for key, value in values.items()}
    values = _with_present_keys(values, source)
    training = values.get("training")
    if default_run_directory and isinstance(training, dict) and training.get("run_directory") is None:
        values = {**values, "training": {**training, "run_directory": default_run_directory}}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_blame(error, source, overridden)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text that `load_config` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _leave_out_other_kinds(values: dict[str, Any], overridden: Sequence[str]) -> None:
    """Remove what the file says of other kinds from sections whose kind is from the command line."""
    for section in {key.partition(".")[0] for key in overridden}:
        discriminator = f"{section}.{discriminator_of(section)}"
        if discriminator in overridden:
            kind = values[section][discriminator_of(section)]
            for name in [name for name in values[section] if f"{section}.{name}" not in overridden]:
                owners = [owner for key in keys_at([section, str(name)])[:1] for owner in key.kinds]
                if owners and kind not in owners:
                    del values[section][name]


def _with_present_keys(values: dict[str, Any], source: str) -> dict[str, Any]:
    try:
        return move_former_keys(values)
    except ValueError as error:
        raise ConfigError(f"{error} (in {source})") from None


def _blame(error: ValidationError, source: str, overridden: Sequence[str]) -> str:
    """All problems in a line: those of the command line first, then the others with the file that they are in."""
    of_command_line: list[str] = []
    of_file: list[str] = []
    concerned: list[str] = []
    # a key that is missing may be one that is misspelt: the unknown ones come first
    for problem in sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden"):
        text, location = _explain(problem), ".".join(_located(problem["loc"])[1])
        if problem["type"] == "union_tag_invalid":
            location = f"{location}.{discriminator_of(location) or 'kind'}"
        alone, keys = overrides_behind(location, overridden)
        keys = keys if location else [key for key in keys if key in text]
        if problem["type"] == "extra_forbidden" and problem["input"] and isinstance(problem["input"], dict):
            alone = alone or len(keys) == len(problem["input"])  # an unknown section that only overrides have named
        (of_command_line if alone else of_file).append(text)
        concerned += [] if alone else [key for key in keys if key not in concerned]
    parts = [f"{COMMAND_LINE}: {'; '.join(of_command_line)}"] if of_command_line else []
    if of_file:
        beside = f", with {', '.join(concerned[:3])} of the {COMMAND_LINE}" if concerned else ""
        parts.append(f"{'; '.join(of_file)} (in {source}{beside})")
    return "; ".join(parts)


def _explain(problem: Any) -> str:
    kind, location = _located(problem["loc"])
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        owners = [owner for key in keys_at(location)[:1] for owner in key.kinds]
        if owners:
            kinds = f"{location[0]}.{discriminator_of(location[0])}"
            return f"{name} belongs to {kinds} {' or '.join(owners)}, not {kind}; leave it out"
        return f"unknown key {name!r}{nearest_key(location, kind)}"
    if problem["type"] == "missing":
        described = next((key.description for key in keys_at(location)), "")
        return f"missing key {name!r}" + (f" ({described.split('. ')[0].removesuffix('.')})" if described else "")
    if problem["type"] == "union_tag_not_found":
        return f"missing key '{name}.{discriminator_of(name)}'"
    if problem["type"] == "union_tag_invalid":
        tag = discriminator_of(name) or "kind"
        found = problem["input"].get(tag)
        return f"{name}.{tag}: expected one of {problem['ctx']['expected_tags']}, got {found!r:.60}"
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"{name}: expected a section, with keys of its own, got {problem['input']!r:.60}"
    message = message_of(problem)
    if not name:
        return message
    if problem["type"] == "value_error":
        return f"{name}: {message}"
    return f"{name}: {message}, got {problem['input']!r:.60}"


def _located(location: Sequence[str | int]) -> tuple[str | None, list[str]]:
    """The kind of the section that a problem is in, if it has several, and the key, without the kind in its middle."""
    names = [str(part) for part in location]
    if len(names) > 1 and discriminator_of(names[0]):
        return names[1], [names[0], *names[2:]]
    return None, names
