"""The digits from their data set to samples that a classifier recognises, through the scripts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from tests.distributed import jobs

SAMPLES, PART = 200, 50
LAUNCHER = jobs.REPOSITORY / "launcher"
SCALE, COLUMNS = 4, 10


class Journey:
    """Prepared, trained on two ranks, consolidated, evaluated, generated."""

    def __init__(self, directory: Path):
        data, self.run, self.exported = directory / "data", directory / "run", directory / "exported"
        self.samples, self.evaluation = directory / "samples", directory / "evaluation.json"
        config = jobs.REPOSITORY / "configs" / "digits_nar.yaml"
        script("prepare", "--digits", "--output", str(data))
        overrides = [f"data.directory={data}", f"training.run_directory={self.run}", "training.steps=400"]
        jobs.run(jobs.deepspeed_command(2, jobs.TRAIN, "--config", str(config), *overrides))
        script("consolidate", "--run", str(self.run), "--output", str(self.exported))
        checkpoint = ("--checkpoint", str(self.exported))
        limit = ("--limit", "64", "--output", str(self.evaluation))
        script("evaluate", *checkpoint, "--data", str(data), *limit)
        # revealing the surest pixels first gives every digit in one shape alone
        asked = ("--num-samples", str(SAMPLES), "--part-size", str(PART), "--batch-size", str(PART))
        asked = (*asked, "--sampler", "random")
        script("generate", *checkpoint, "--output", str(self.samples), *asked)


def script(name: str, *arguments: str) -> None:
    jobs.run([sys.executable, str(LAUNCHER / f"{name}.py"), *arguments])


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    return Journey(tmp_path_factory.mktemp("digits"))


def grid_size(count: int) -> tuple[int, int]:
    """Width and height of a picture of so many digits, in pixels."""
    cell = 8 * SCALE + 1
    return COLUMNS * cell + 1, -(-count // COLUMNS) * cell + 1


def test_samples_are_recognised_as_what_was_asked_for(journey: Journey) -> None:
    lines = [line for path in sorted(journey.samples.glob("*.jsonl")) for line in path.read_text().splitlines()]
    samples = [json.loads(line) for line in lines]
    assert [sample["class"] for sample in samples] == [number % 10 for number in range(SAMPLES)]
    assert not any("generated" in sample for sample in samples)
    digits = load_digits()
    classifier = SVC(gamma=0.001).fit(digits.data[0::2], digits.target[0::2])
    assert classifier.score(digits.data[1::2], digits.target[1::2]) > 0.97
    images = np.array([sample["tokens"] for sample in samples])
    assert (classifier.predict(images) == [sample["class"] for sample in samples]).mean() >= 0.85
    variety = images.reshape(-1, 10, 64).std(axis=0).mean()
    real = np.mean([digits.data[digits.target == digit].std(axis=0).mean() for digit in range(10)])
    assert variety > 0.5 * real


def test_samples_are_drawn(journey: Journey) -> None:
    pictures = sorted(journey.samples.glob("*.png"))
    assert [path.name for path in pictures] == [f"part-{part:05d}.png" for part in range(SAMPLES // PART)]
    assert {Image.open(path).size for path in pictures} == {grid_size(PART)}
    in_training = sorted((journey.run / "samples").iterdir())
    assert [path.name for path in in_training] == ["step-000000200.png", "step-000000400.png"]
    assert {Image.open(path).size for path in in_training} == {grid_size(40)}


def test_tensorboard_shows_them(journey: Journey) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(journey.run / "tensorboard")).Reload()
    assert [image.step for image in events.Images("samples")] == [200, 400]
    assert {(image.width, image.height) for image in events.Images("samples")} == {grid_size(40)}


def test_their_likelihood_is_of_tokens_alone(journey: Journey) -> None:
    evaluation = json.loads(journey.evaluation.read_text())
    assert evaluation["bits_per_byte"] is None
    assert evaluation["tokens"] == 64 * 64
    assert 0 < evaluation["nats_per_token"] < 2
