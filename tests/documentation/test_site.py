"""The pages become a site, all of whose links, anchors and pictures are there; keys that they name exist."""

import re
import sys
from subprocess import run

import pytest

from nar_scale.config import Config
from nar_scale.config.key_descriptions import keys_at

from .blocks import PAGES, REPOSITORY

README_LINES = 180
SECTION = "|".join(Config.model_fields)
NO_KEYS = {  # what looks like a key and is none
    "model.json": "file",
    "model.safetensors": "file",
    "model.config": "attribute in Python",
    "model.diffusion": "attribute in Python",
    "model.info.decode": "attribute in Python",
    "model.wrapper": "attribute in Python",
    "objective.steps": "of version 0.1",
    "objective.guidance_scale": "of version 0.1",
    "optimizer.type": "of GPT-NeoX",
    "optimizer.params.lr": "of GPT-NeoX",
    "optimizer.params.betas": "of GPT-NeoX",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    result = run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return directory


def test_each_page_is_in_the_site(site):
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert {page.removeprefix("docs/").replace(".md", ".html") for page in PAGES if page.startswith("docs/")} <= pages
    assert {"index.html", "results.html", "slurm.html", "contributing.html", "changelog.html"} <= pages
    assert "<img" in (site / "index.html").read_text()


def test_no_fence_is_left_in_the_site(site):
    assert [path.name for path in site.rglob("*.html") if "```" in path.read_text()] == []


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES


def keys_named_in(text: str) -> set[str]:
    """What looks like `section.key` of the YAML file, as code."""
    return set(re.findall(rf"(?<=`)(?:{SECTION})\.[a-z_]+(?:\.[a-z_*]+)*(?=[`:=])", text))


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_a_page_names_exist(page):
    named = keys_named_in((REPOSITORY / page).read_text()) - set(NO_KEYS)
    assert [key for key in sorted(named) if not key.startswith("deepspeed.") and not keys_at(key.split("."))] == []


def test_a_key_that_does_not_exist_is_found():
    assert keys_named_in("`training.stepps: 3` and `model.dim`, not model.x") == {"training.stepps", "model.dim"}
    assert keys_at(["training", "stepps"]) == []
