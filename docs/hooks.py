"""Pages of the site that lie beside docs/, so that each text exists once, and links that work in both places."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
    "benchmarks/EXPERIMENTS.md": "experiments.md",
    "slurm/README.md": "slurm.md",
}
_HOMES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(!?\[)([^\[\]]*)\]\(([^)\s#:]+)((?:#[^)\s]*)?)\)")
_FENCES = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that hold in the repository into those that hold in the site."""
    place = page.file.src_uri
    here = posixpath.dirname(_HOMES.get(place, f"docs/{place}"))
    parts = _FENCES.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(_moved(here, place), part) for part in parts)


def _moved(here: str, place: str) -> Any:
    def replace(link: re.Match[str]) -> str:
        begin, text, path, anchor = link.groups()
        target = posixpath.normpath(posixpath.join(here, path))
        if not target.startswith("docs/") and target not in PAGES and (REPOSITORY / target).is_file():
            return text  # a file of the repository that is no page
        target = PAGES.get(target, target.removeprefix("docs/"))
        return f"{begin}{text}]({posixpath.relpath(target, posixpath.dirname(place) or '.')}{anchor})"

    return replace
