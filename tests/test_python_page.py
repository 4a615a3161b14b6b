"""docs/python.md is run from top to bottom; the process is then as it was before."""

import logging
import os
import re
import signal
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import nar_scale
from nar_scale.errors import UserError
from nar_scale.training.callbacks.callback import Callback
from tests.errors import refused

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def state():
    """What training changes meanwhile."""
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "random": torch.get_rng_state().tolist(),
        "hook": threading.excepthook,
        "filters": list(warnings.filters),
        "threads": {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"},
        "groups": dist.is_initialized(),
        "levels": [logging.getLogger(name).level for name in ("", "nar_scale", "torch", "DeepSpeed")],
    }


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The names that the page defines, with the directory that it was run in and the state around it."""
    directory = tmp_path_factory.mktemp("session")
    (directory / "notes.txt").write_text("It is a note of one line, with a gap of 3.\n" * 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sys, "argv", ["python"])
        names = {"directory": directory, "before": state()}
        for block in BLOCK.findall(PAGE.read_text()):
            exec(block, names)
        return {**names, "after": state()}


def test_the_page_trains_and_generates(session):
    run, model = session["run"], session["model"]
    assert (run.complete, run.step) == (True, 20)
    assert run.checkpoint == Path("runs/notes/checkpoints/step-000000020")
    assert 0 < run.loss < 5.6
    assert 0 < run.validation["validation_nats_per_token"] < 5.6
    assert model.info.step == 20
    assert model.generate("It is ").startswith("It is ")


def test_the_process_is_as_it_was_before(session):
    # but for random numbers, which `wrapper.generate` has drawn
    before, after = ({**session[when], "random": None} for when in ("before", "after"))
    assert after == before


class InterruptAfter(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, run):
        if run.state.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_training_again_goes_on_after_an_interruption(session, monkeypatch):
    monkeypatch.chdir(session["directory"])
    config = nar_scale.load("exported/notes").config
    before = state()
    interrupted = nar_scale.train(config, {"training.steps": 26}, callbacks=[InterruptAfter(22)])
    assert (interrupted.complete, interrupted.step) == (False, 23)
    again = nar_scale.train(config, ["training.steps=26"])
    assert (again.complete, again.step) == (True, 26)
    assert again.validation != session["run"].validation
    assert state() == before


def test_what_cannot_be_trained_is_refused(session, monkeypatch):
    monkeypatch.chdir(session["directory"])
    config = session["model"].config.model_dump()
    with refused(UserError, "training.stepz"):
        nar_scale.train(config, {"training.stepz": 5})
    with refused(UserError, "training.run_directory"):
        nar_scale.train({**config, "training": {**config["training"], "run_directory": None}})
    with refused(UserError, "nowhere.yaml"):
        nar_scale.train("nowhere.yaml")
    with refused(UserError, "nowhere"):
        nar_scale.train(config, {"data.directory": "nowhere", "training.run_directory": "runs/other"})
    assert not dist.is_initialized()

    caught = []

    def train():
        with refused(UserError, "main thread") as error:
            nar_scale.train(config)
        caught.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert caught
