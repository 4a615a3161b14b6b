"""What a directory of results holds: the record that its workers agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nar_scale.errors import UserError
from nar_scale.files import create_atomically, remedy_for
from nar_scale.fleet.parts import FORMATS, JSONL, Layout

RECORD_FILE = "generation.json"


def claim_output(output: Path, record: dict[str, Any]) -> None:
    """Record what the output directory holds; of several workers the first one does.

    Args:
        output: the directory, which is created if it does not exist.
        record: everything that the results depend on.

    Raises:
        UserError: another record is there, or the directory cannot be written.
    """
    path = output / RECORD_FILE
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            create_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
        found = _parse(path)
    except OSError as error:
        known = remedy_for(error)
        remedy = f"{known} and run the same command again" if known else "choose another --output"
        raise UserError(f"cannot write {output}: {error.strerror}; {remedy}") from None
    different = [name for name in {**found, **record} if found.get(name) != record.get(name)]
    if different:
        raise UserError(
            f"{output} holds results of another {' and other '.join(different)} (see {path.name}); "
            "choose another --output or remove it"
        )


def read_record(output: Path) -> tuple[dict[str, Any], Layout]:
    """What a directory of results holds, and how it is cut into parts.

    Raises:
        UserError: it holds no results, or the record is damaged.
    """
    path = output / RECORD_FILE
    try:
        record = _parse(path)
        return record, Layout(int(record["count"]), int(record["part_size"]), record.get("format", JSONL))
    except FileNotFoundError:
        raise UserError(f"{output} holds no results of workers (no {RECORD_FILE})") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None


def _parse(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(record, dict) or record.get("format", JSONL) not in FORMATS:
        raise _damaged(path)
    return record


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; choose another --output or remove it")
