"""A real browser without a window, for pages that people look at."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Watched:
    """A page, and what it did: `address` of each request, `said` on the console and in dialogs."""

    page: Any
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def colours(self, path: Path) -> set[tuple[int, ...]]:
        """The colours of a screenshot of the whole page, which is left at `path`."""
        from PIL import Image

        self.page.screenshot(path=path, full_page=True)
        with Image.open(path) as image:
            found = image.convert("RGB").getcolors(1 << 24)
        return {colour for _, colour in found or ()}


@contextmanager
def browser() -> Iterator[Any]:
    """A `with` block with a browser; the test is skipped where none is installed, and fails for that in CI."""
    program = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if program is None:
        reason = f"there is no browser to look at pages with: install one of {', '.join(_NAMES)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # without its sandbox it runs as root, too, as in a container
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def watch(opened: Any, address: str, width: int = 1280) -> Watched:
    """Open a page in a browser."""
    page = opened.new_page(viewport={"width": width, "height": 900})
    watched = Watched(page)
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("console", lambda message: watched.said.append(message.text))
    page.on("dialog", lambda dialog: (watched.said.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    return watched
