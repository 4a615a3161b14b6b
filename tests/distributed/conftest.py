import random
from pathlib import Path

import pytest

from nar_scale.data import prepare

from .jobs import SEQUENCE_LENGTH


def write_texts(directory: Path) -> Path:
    """Half a million letters of made-up words, some far more frequent than others; the same everywhere and for ever."""
    directory.mkdir()
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrst", k=generator.randint(2, 8))) for _ in range(400)]
    weights = [1 / (1 + rank) for rank in range(len(words))]
    for number in range(30):
        lines = (" ".join(generator.choices(words, weights, k=10)) + ".\n" for _ in range(300))
        (directory / f"{number}.txt").write_text("".join(lines))
    return directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of words; not of this repository's own text, with which losses and roundings would change."""
    directory = tmp_path_factory.mktemp("corpus")
    sizes = {"seq_len": SEQUENCE_LENGTH, "validation": 0.2, "samples_per_shard": 1000}
    prepare([write_texts(directory / "texts")], directory / "shards", workers=1, progress=False, **sizes)
    return directory / "shards"
