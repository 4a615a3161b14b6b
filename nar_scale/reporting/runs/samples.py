"""The samples that a run has drawn, for the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from nar_scale.reporting.runs.run_files import RunFiles
from nar_scale.training.metrics.writer import SAMPLE_SEPARATOR

_STEPS, _TEXTS, _LETTERS, _BYTES = 6, 4, 2000, 2_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Samples:
    """What a run drew at a step.

    Attributes:
        step: optimizer steps taken.
        texts: of the samples, the first few, none longer than a screen.
        image: a picture of the samples as a `data:` URI; None for text.
    """

    step: int
    texts: Sequence[str]
    image: str | None


def samples_over_time(run: RunFiles, count: int = _STEPS) -> list[Samples]:
    """The samples of a few steps, evenly spread from the first to the last; files that cannot be read are left out."""
    files, last = run.samples, len(run.samples) - 1
    chosen = sorted({round(number * last / max(count - 1, 1)) for number in range(count)}) if count > 1 else [last]
    found = []
    for step, path in [files[number] for number in chosen if files]:
        try:
            with open(path, "rb") as file:
                content = file.read(_BYTES + 1)
        except OSError:
            continue
        if path.suffix == ".txt":
            texts = content.decode(errors="replace").split(SAMPLE_SEPARATOR)[:_TEXTS]
            found.append(Samples(step, [_cut(text) for text in texts], None))
        elif content.startswith(_PNG) and len(content) <= _BYTES:
            found.append(Samples(step, (), f"data:image/png;base64,{base64.b64encode(content).decode()}"))
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]} ..."
