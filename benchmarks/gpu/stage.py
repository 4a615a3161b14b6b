"""What every stage uses: its arguments, and its measurements on disk."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.gpu import report

ROOT = Path(__file__).parents[2]
KIT_VARIABLE = "NAR_SCALE_GPU_KIT"
REHEARSE_VARIABLE = "NAR_SCALE_REHEARSE"


def arguments(description: str | None) -> argparse.Namespace:
    """The arguments of a stage: `output` (a path), `seconds` (a float) and `rehearse` (a bool)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="where measurements go")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="N", help="the time there is (default 600)")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on CPUs, to find typos")
    return parser.parse_args()


def kit_data() -> Path:
    """The directory of the prepared data set that `make gpu-kit` made."""
    return Path(os.environ.get(KIT_VARIABLE, ROOT / ".gpu")) / "data"


class Record:
    """The measurements of a stage, on disk after every change.

    Args:
        path: the file to write, as `benchmarks.gpu` describes it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.measurements: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._write()

    def add(self, name: str, value: float | str, unit: str, **extras: Any) -> None:
        """Add a measurement, in place of one of the same name if there is one.

        Raises:
            TypeError: `extras` holds what JSON cannot.
        """
        self.measurements[name] = {"name": name, "value": value, "unit": unit, **extras}
        self._write()

    def note(self, text: str) -> None:
        """Add a sentence for the reader."""
        self.notes.append(text)
        self._write()

    def _write(self) -> None:
        content = {"measurements": list(self.measurements.values()), "notes": self.notes}
        report.write(self.path, json.dumps(content, indent=1) + "\n")
