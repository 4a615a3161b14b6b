"""TensorBoard itself, in a browser, on what a run writes for it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nar_scale.config import validate_config
from nar_scale.training.metrics.events import RESUMED, ROLLED_BACK, SKIPPED
from nar_scale.training.metrics.writer import MetricsWriter
from tests.browser import Watched, browser, watch

from .test_writer import CONFIG

GROUPS = ("checkpoint", "data", "events", "loss_by_mask", "main", "memory", "speed")
MARKS = {RESUMED: "went on from step 5", SKIPPED: "2 since the report before", ROLLED_BACK: "back to step 9"}
ATTACK = "<img src=x onerror='window.attacked = 1'>"


def write_run(directory: Path) -> None:
    directory.mkdir()
    writer = MetricsWriter(directory, 0)
    writer.settings(validate_config(CONFIG, "test"), {"zero_optimization": {"stage": 2}})
    for step in range(1, 10):
        values = {"loss": 9.0 / step, "learning_rate": 0.1, "masked_0.0_to_0.2": 1.0, "tokens_per_second": 100.0}
        writer.scalars(step, {**values, "memory_gib": 1.0, "checkpoint_seconds": 0.5, "samples_of_code": 8.0 * step})
        writer.scalars(step, {"validation_code_nats_per_token": 10.0 / step})
    writer.texts(9, ["a sample of step nine", ATTACK])
    writer.event(5, RESUMED, MARKS[RESUMED])
    writer.event(8, SKIPPED, MARKS[SKIPPED])
    writer.scalars(10, {"loss": 99.0})
    writer.rewind(9)
    writer.event(9, ROLLED_BACK, MARKS[ROLLED_BACK])
    writer.close()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("runs")
    write_run(directory / "mine")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port=0", "--load_fast=false"]
    with (
        browser() as opened,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+:\d+/", line)))
            watched = watch(opened, address)
            watched.page.set_default_timeout(60_000)
            yield watched
        finally:
            server.terminate()


def open_tab(seen: Watched, name: str, *texts: str) -> Any:
    """The page with a tab in front, once all of these texts are there."""
    seen.page.goto(f"{seen.requests[0]}#{name}")
    seen.page.reload()
    for text in texts:
        seen.page.get_by_text(text, exact=True).first.wait_for(state="visible")
    return seen.page


def height(page: Any, text: str) -> float:
    """Where the first of a text is, from the top."""
    return page.get_by_text(text, exact=True).first.bounding_box()["y"]


def test_scalars_are_in_their_groups(seen: Watched, tmp_path: Path) -> None:
    page = open_tab(seen, "scalars", *GROUPS)
    places = [height(page, group) for group in GROUPS]
    assert places == sorted(places)
    assert len(seen.colours(tmp_path / "scalars.png")) > 100


def test_training_and_validation_are_in_one_chart(seen: Watched, tmp_path: Path) -> None:
    page = open_tab(seen, "custom_scalars", "loss, training and validation", "loss by masked fraction", "speed")
    page.get_by_text("Matches (2)").first.wait_for(state="visible")
    for tag in ("main/loss (", "main/validation_code_nats_per_token ("):  # in the list of matches, which is folded
        page.get_by_text(re.compile(re.escape(tag))).first.wait_for(state="attached")
    assert height(page, "loss, training and validation") < height(page, "loss by masked fraction")
    assert len(seen.colours(tmp_path / "custom_scalars.png")) > 100


def test_samples_come_before_settings_and_are_text(seen: Watched) -> None:
    page = open_tab(seen, "text", "samples", "settings", "timeline")
    places = [height(page, group) for group in ("samples", "settings", "timeline")]
    assert places == sorted(places)
    page.get_by_text("a sample of step nine").first.wait_for(state="visible")
    page.get_by_text(ATTACK).first.wait_for(state="visible")
    assert page.evaluate("window.attacked") is None
    assert page.get_by_text("events", exact=True).count() == 0


def test_resumes_skips_and_roll_backs_are_marked_on_the_steps_of_the_loss(seen: Watched, tmp_path: Path) -> None:
    page = open_tab(seen, "custom_scalars", "loss, training and validation", "resumes, skips, roll-backs")
    for mark in MARKS:
        page.get_by_text(re.compile(re.escape(f"events/{mark} ("))).first.wait_for(state="attached")
    assert abs(height(page, "loss, training and validation") - height(page, "resumes, skips, roll-backs")) < 700
    assert len(seen.colours(tmp_path / "marks.png")) > 100


def test_marks_say_what_has_happened(seen: Watched, tmp_path: Path) -> None:
    page = open_tab(seen, "text", "timeline")
    page.get_by_text("timeline", exact=True).first.click()  # unfolds it
    for text in MARKS.values():
        page.get_by_text(text).first.wait_for(state="visible")
    assert len(seen.colours(tmp_path / "timeline.png")) > 10


def test_hyperparameters_are_few_and_have_the_last_losses_beside_them(seen: Watched) -> None:
    page = open_tab(seen, "hparams", "objective.kind", "mine/tensorboard")
    shown = page.get_by_text(re.compile(r"^\s*(model|objective|optimizer|schedule|training|data|logging)\.\w+\s*$"))
    names = {text.strip() for text in shown.all_text_contents()}
    assert {"model.dim", "objective.kind", "optimizer.learning_rate", "training.seed"} <= names
    assert len(names) <= 20
    assert not any(name.startswith(("data.", "logging.")) for name in names)
    page.get_by_text("main/validation_code_nats_per_token").first.wait_for(state="visible")


def test_nothing_is_fetched_from_elsewhere(seen: Watched) -> None:
    local = re.compile(r"(http://(localhost|127\.0\.0\.1|[\w.-]+):\d+/|data:|blob:)")
    assert [address for address in seen.requests if not local.match(address)] == []
