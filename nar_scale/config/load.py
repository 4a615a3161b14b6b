"""From a YAML file and `section.key=value` overrides to a `Config`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nar_scale.config.former_keys import current_key, move_former_keys
from nar_scale.config.key_descriptions import discriminator_of, keys_at, nearest_key
from nar_scale.config.schema import Config
from nar_scale.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `3e-4` as a string; here it is the number that everyone means. A key stands once."""

    def get_single_node(self) -> yaml.Node | None:
        # before it is read, as a merge (<<) then puts keys beside those of the text, which win
        root = super().get_single_node()
        waiting, seen = [root], set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen:  # an anchor
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                _refuse_doubles(node)
                waiting.extend(value for _, value in node.value)
            elif isinstance(node, yaml.SequenceNode):
                waiting.extend(node.value)
        return root


def _refuse_doubles(mapping: yaml.MappingNode) -> None:
    seen: list[Any] = []
    for key, _ in mapping.value:
        if key.value in seen and key.value != "<<":
            raise yaml.constructor.ConstructorError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
        seen.append(key.value)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a YAML file; whether a run can start with it is for `check_run` to say.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings, applied over the file; values are YAML.

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
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as 'model:' and 'training:', found {values!r:.60}")
    values = _with_present_keys(values, str(path))
    for override in overrides:
        _apply(values, override)
    return validate_config(values, source=str(path), default_run_directory=f"runs/{path.stem}")


def validate_config(values: dict[str, Any], source: str, default_run_directory: str | None = None) -> Config:
    """Turn nested dictionaries into a `Config`; `source` names their origin in error messages.

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
        raise ConfigError("; ".join(_explain(problem) for problem in error.errors()) + f" (in {source})") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text that `load_config` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _with_present_keys(values: dict[str, Any], source: str) -> dict[str, Any]:
    try:
        return move_former_keys(values)
    except ValueError as error:
        raise ConfigError(f"{error} (in {source})") from None


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split()).replace(' in "<unicode string>"', "")
        raise ConfigError(f"{source} is not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply to be a configuration") from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *sections, name = current_key(key).split(".")
    if not separator or not sections or not name:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    for section in sections:
        if values.get(section) is None:  # also one whose keys are all commented out
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is not a section")
    values[name] = _parse(value, f"override {override!r}")


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
        return f"missing key {name!r}"
    if problem["type"] == "union_tag_not_found":
        return f"missing key '{name}.{discriminator_of(name)}'"
    if problem["type"] == "union_tag_invalid":
        tag = discriminator_of(name) or "kind"
        found = problem["input"].get(tag)
        return f"{name}.{tag}: expected one of {problem['ctx']['expected_tags']}, got {found!r:.60}"
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"{name}: expected a section, with keys of its own, got {problem['input']!r:.60}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
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
