"""When callbacks are called, and what a roll-back does; steps, engines and ranks: tests/distributed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nar_scale.checkpoint import TrainingState
from nar_scale.errors import DivergenceError
from nar_scale.training.callbacks.callback import Callback
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.fault_tolerance.preemption import StopAgreement
from nar_scale.training.trainer import RunContext, Trainer
from tests.config.helpers import config_with

START = TrainingState(0, 0, "f", 0, 8, 1, 2, 257, "byte", 256)


class Request:
    asked = False

    def __bool__(self):
        return self.asked

    def begin_deadline(self):
        pass


class Noting(Callback):
    """Notes what it is called for, and fails where it is told to."""

    def __init__(self, name, notes, fails_at=()):
        self.name, self.notes, self.fails_at = name, notes, list(fails_at)

    def on_run_start(self, run):
        self.notes.append(f"{self.name} starts at {run.state.step}")

    def on_step_end(self, run):
        self.notes.append(f"{self.name} sees {run.state.step}")
        if run.state.step in self.fails_at:
            self.fails_at.remove(run.state.step)
            raise DivergenceError("weights are not finite")

    def on_roll_back(self, run):
        self.notes.append(f"{self.name} is back at {run.state.step}, sample {run.state.samples}")

    def on_run_end(self, run):
        self.notes.append(f"{self.name} ends at {run.state.step}")


class Stepping(Trainer):
    """Counts steps instead of taking them."""

    def train_step(self):
        self.state = replace(self.state, step=self.state.step + 1, samples=self.state.samples + 8)


class Data:
    def __init__(self):
        self.opened, self.open = [], 0

    def stream(self, config, world, sample, step):
        self.opened.append((sample, step))
        self.open += 1
        return self

    def close(self):
        self.open -= 1


class Checkpoints:
    """Of one step, or none."""

    def __init__(self, step):
        self.step = step

    def restore_newest(self, engine):
        return self.step


def trainer_with(callbacks, checkpoint=None, **settings):
    config = config_with(**{"training.steps": 3, **settings})
    world = SimpleNamespace(device=torch.device("cpu"), is_main=True, all_reduce=lambda values: values)
    engine = SimpleNamespace(skip_non_finite_steps=lambda: None)
    stop = StopAgreement(Request(), world)
    context = RunContext(config, world, engine, Data(), Activity(), stop)
    return Stepping(context, START, Checkpoints(checkpoint), callbacks)


def test_callbacks_are_called_in_order_and_at_the_end_in_reverse():
    notes = []
    trainer = trainer_with([Noting("a", notes), Noting("b", notes)])
    assert trainer.run()
    steps = [f"{name} sees {step}" for step in (1, 2, 3) for name in "ab"]
    assert notes == ["a starts at 0", "b starts at 0", *steps, "b ends at 3", "a ends at 3"]


def test_a_run_that_is_asked_to_stop_takes_no_further_step():
    notes = []
    trainer = trainer_with([Noting("a", notes)])
    trainer.stop._request.asked = True
    assert not trainer.run()
    assert notes == ["a starts at 0", "a ends at 0"]


def test_a_roll_back_goes_on_from_the_checkpoint_with_other_samples():
    notes = []
    settings = {"faults.on_non_finite": "roll_back", "faults.max_roll_backs": 1}
    trainer = trainer_with([Noting("a", notes, fails_at=[2])], checkpoint=1, **settings)
    losses = trainer.metrics.losses
    assert trainer.run()
    assert notes[1:4] == ["a sees 1", "a sees 2", "a is back at 1, sample 16"]
    assert notes[4:] == ["a sees 2", "a sees 3", "a ends at 3"]
    assert trainer._data.opened == [(0, 0), (16, 1)]
    assert trainer._data.open == 1  # the stream before the roll-back is closed, with its processes
    trainer.close()
    assert trainer._data.open == 0
    assert (trainer.state.roll_backs, trainer.state.samples) == (1, 32)
    assert trainer.metrics.losses is not losses


@pytest.mark.parametrize(
    ("settings", "checkpoint", "roll_backs"),
    [
        ({"faults.on_non_finite": "stop"}, 1, 0),
        ({"faults.on_non_finite": "roll_back"}, None, 0),
        ({"faults.on_non_finite": "roll_back", "faults.max_roll_backs": 1}, 1, 1),
    ],
)
def test_a_divergence_without_a_roll_back_ends_the_run(settings, checkpoint, roll_backs):
    trainer = trainer_with([Noting("a", [], fails_at=[2, 2])], checkpoint, **settings)
    with pytest.raises(DivergenceError, match=r"weights are not finite.*optimizer\.learning_rate") as caught:
        trainer.run()
    assert trainer.state.roll_backs == roll_backs
    assert ("after 1 roll back" in str(caught.value)) == bool(roll_backs)


@pytest.mark.parametrize(("every", "due"), [(0, []), (2, [2, 3]), (3, [3]), (1, [1, 2, 3])])
def test_due(every, due):
    trainer = trainer_with([])
    found = []
    for step in (1, 2, 3):
        assert trainer.due(every, ahead=1) == (step in due)
        trainer.train_step()
        if trainer.due(every):
            found.append(step)
    assert found == due
