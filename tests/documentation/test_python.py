"""The Python of the documentation runs, page by page, in a directory with data and models as the pages have them."""

from pathlib import Path

import pytest

from nar_scale.data.preparation.pipeline import prepare

from .blocks import PAGES, REPOSITORY, blocks_of

OWN_TEST = {"docs/python.md": "tests/test_python_page.py"}
WITH_PYTHON = [
    page for page in PAGES if page not in OWN_TEST and any(block.language == "python" for block in blocks_of(page))
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `data/mine`, and an empty `runs`."""
    directory = tmp_path_factory.mktemp("python")
    (directory / "runs").mkdir()
    inputs = [REPOSITORY / page for page in PAGES]
    prepare(inputs, directory / "data" / "mine", seq_len=128, validation=0.05, workers=1, progress=False)
    return directory


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs(page, here, monkeypatch):
    monkeypatch.chdir(here)
    names: dict[str, object] = {}  # the blocks of a page go on with each other's
    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
