"""YAML text to values: numbers as everyone writes them, each key once, and nothing that only looks small."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nar_scale.errors import ConfigError

MOST_VALUES = 100_000
"""Values of a text with each alias written out; the largest configurations have some hundreds."""
LARGEST_INTEGER = 2**128


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `3e-4` as a string; here it is the number that everyone means. A key stands once."""

    def get_single_node(self) -> yaml.Node | None:
        # before it is read, as a merge (<<) then puts keys beside those of the text, which win
        root = super().get_single_node()
        if root is not None:
            _check(root)
        return root

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """An integer, if it can be one of a configuration: others need long to be printed, or cannot be."""
        number = int(super().construct_yaml_int(node))
        if abs(number) >= LARGEST_INTEGER:
            raise yaml.constructor.ConstructorError(
                problem="an integer of more than 128 bits", problem_mark=node.start_mark
            )
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """The values of a YAML text: dictionaries, lists, texts, numbers, dates, truth values and None, and nothing else.

    Args:
        text: of a file or of the value of a setting.
        source: names its origin in messages.

    Raises:
        ConfigError: it is not valid, a key stands twice, it is nested too deeply, or has too many values when each
            alias is written out.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_explain(error)}") from None
    except ValueError as error:  # a number that Python refuses, such as one of many thousand digits, or a 32nd of May
        raise ConfigError(f"{source} is not valid YAML: {str(error).split(';')[0]}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply to be a configuration") from None


def _explain(error: yaml.YAMLError) -> str:
    """What is wrong, and where; without the excerpt of the text that shows it in lines of its own."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and (mark := error.problem_mark):
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split()).replace(' in "<unicode string>"', "")


def _check(root: yaml.Node) -> None:
    """Refuse doubled keys, and aliases that stand for more values than any configuration has, or for themselves."""
    sizes: dict[int, int] = {}
    waiting = [root]
    inside: set[int] = set()
    while waiting:
        node = waiting[-1]
        children = _children(node)
        unknown = [child for child in children if id(child) not in sizes]
        if id(node) in sizes or not unknown:
            sizes.setdefault(id(node), 1 + sum(sizes[id(child)] for child in children))
            inside.discard(id(node))
            waiting.pop()
            continue
        if id(node) not in inside and isinstance(node, yaml.MappingNode):
            _refuse_doubles(node)
        inside.add(id(node))
        if any(id(child) in inside for child in unknown):
            raise yaml.constructor.ConstructorError(
                problem="an alias stands within itself", problem_mark=node.start_mark
            )
        waiting.extend(unknown)
    if sizes[id(root)] > MOST_VALUES:
        raise yaml.constructor.ConstructorError(
            problem=f"it has more than {MOST_VALUES:,} values when its aliases are written out"
        )


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_doubles(mapping: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in mapping.value:
        name = str(key.value)
        if name in seen and name != "<<":
            raise yaml.constructor.ConstructorError(problem=f"{name!r} stands twice", problem_mark=key.start_mark)
        seen.add(name)
