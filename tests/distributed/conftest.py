from pathlib import Path

import pytest

from nar_scale.data import prepare

from .jobs import SEQUENCE_LENGTH


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of this project's own source, as shards."""
    output = tmp_path_factory.mktemp("corpus") / "shards"
    source = Path(__file__).parents[2] / "nar_scale"
    sizes = {"seq_len": SEQUENCE_LENGTH, "validation": 0.2, "samples_per_shard": 1000}
    prepare([source], output, include="*.py", workers=1, progress=False, **sizes)
    return output
