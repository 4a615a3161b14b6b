"""Whether DeepSpeed knows the raw settings that it is given, according to the DeepSpeed that is installed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from nar_scale.errors import ConfigError
from nar_scale.text import message_of

_DOCUMENTATION = "https://www.deepspeed.ai/docs/config-json"
_BATCH = ("train_batch_size", "gradient_accumulation_steps")  # which DeepSpeed compares with the number of ranks


def check_raw_settings(given: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Let DeepSpeed read a configuration, and refuse what it refuses and what it has not asked for.

    Most of its sections are pydantic models without room for other keys; but it does not look at unknown keys beside
    them, nor in sections that it reads key by key.

    Args:
        given: the raw settings of the user, part of the following.
        resolved: the whole configuration.

    Raises:
        ConfigError: an unknown key, with the nearest that is known, or a wrong value.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    read = _Watched({key: value for key, value in resolved.items() if key not in _BATCH})
    try:
        DeepSpeedConfig(read)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(error.title, problem, given) for problem in error.errors())) from None
    except Exception as error:  # of any kind: its checks are assertions, lookups and conversions
        raise ConfigError(f"deepspeed: {' '.join((str(error) or repr(error)).split())}") from None
    for path, known in _never_asked_for(given, read, ()):
        raise ConfigError(_unknown(path, known))


class _Watched(dict[str, Any]):
    """A section that remembers the keys it is asked for, until it is taken as a whole, and so do those within."""

    def __init__(self, values: Mapping[str, Any]):
        self.sections = {key: _Watched(value) for key, value in values.items() if isinstance(value, dict)}
        self.asked: set[str] | None = set()
        super().__init__({**values, **self.sections})

    def _ask(self, key: str) -> None:
        if self.asked is not None:
            self.asked.add(key)

    def __getitem__(self, key: str) -> Any:
        self._ask(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._ask(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._ask(str(key))
        return super().__contains__(key)

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return KeysView(self)

    def __iter__(self) -> Iterator[str]:
        self.asked = None
        return super().__iter__()

    def items(self) -> Any:
        self.asked = None
        return super().items()

    def __copy__(self) -> _Watched:
        return self


def _never_asked_for(
    given: Mapping[str, Any], read: _Watched, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Iterable[str]]]:
    """Keys that DeepSpeed has passed over, and those it knows beside them."""
    if not read.asked or given.get("enabled") is False:  # what is switched off it does not read
        return
    known = set(read.asked)
    for key, value in given.items():
        if key not in known:
            yield (*path, key), known
        elif isinstance(value, Mapping):
            yield from _never_asked_for(value, read.sections[key], (*path, key))


def _explain(title: str, problem: Any, given: Mapping[str, Any]) -> str:
    """What a pydantic model of DeepSpeed, which knows its name but not its place, refuses."""
    location = tuple(str(part) for part in problem["loc"])
    found = [
        path for path, value in _settings(given) if path[-len(location) :] == location and value == problem["input"]
    ]
    path = found[0] if len(found) == 1 else location
    if problem["type"] == "extra_forbidden":
        return _unknown(path, _fields(title, location))
    return f"{_name(path)}: {message_of(problem)}, got {problem['input']!r:.60}"


def _settings(given: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in given.items():
        yield (*prefix, key), value
        if isinstance(value, Mapping):
            yield from _settings(value, (*prefix, key))


def _fields(title: str, location: Sequence[str]) -> set[str]:
    """The keys of the section that a location is in."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    models = [model for model in DeepSpeedConfigModel.__subclasses__() if model.__name__ == title]
    for part in location[:-1]:
        fields = [
            field for model in models for name, field in model.model_fields.items() if part in (name, field.alias)
        ]
        kinds = [kind for field in fields for kind in (field.annotation, *get_args(field.annotation))]
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


def _unknown(path: Sequence[str], known: Iterable[str]) -> str:
    near = difflib.get_close_matches(path[-1], known, 1, 0.6)
    hint = f", did you mean {_name([*path[:-1], near[0]])!r}?" if near else f"; see {_DOCUMENTATION}"
    return f"unknown key {_name(path)!r}{hint}"


def _name(path: Sequence[str]) -> str:
    return ".".join(("deepspeed", *path))
