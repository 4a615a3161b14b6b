"""A report as files: `report.json`, `report.md` and `report.png`."""

from __future__ import annotations

import json
from pathlib import Path

from nar_scale.errors import UserError
from nar_scale.files import write_atomically
from nar_scale.reporting.markdown import render_markdown
from nar_scale.reporting.picture import draw_picture, import_figure
from nar_scale.reporting.report import Report

JSON_FILE, MARKDOWN_FILE, PICTURE_FILE = "report.json", "report.md", "report.png"


def prepare_directory(directory: str | Path) -> None:
    """Find out whether a report can be written, before it is made.

    Raises:
        UserError: the directory cannot be made, or matplotlib is not installed.
    """
    import_figure()
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the report into {directory}: {error.strerror}") from error


def write_report(report: Report, directory: str | Path) -> list[Path]:
    """Write a report into a directory of `prepare_directory`; older files of these names are replaced.

    Returns:
        the files.

    Raises:
        UserError: the directory cannot be written, or matplotlib is not installed.
    """
    contents = {
        JSON_FILE: f"{json.dumps(report.as_dict(), indent=2)}\n".encode(),
        MARKDOWN_FILE: render_markdown(report, PICTURE_FILE).encode(),
        PICTURE_FILE: draw_picture(report),
    }
    directory = Path(directory)
    try:
        for name, content in contents.items():
            write_atomically(directory / name, content)
    except OSError as error:
        raise UserError(f"cannot write the report into {directory}: {error.strerror}") from error
    return [directory / name for name in contents]
