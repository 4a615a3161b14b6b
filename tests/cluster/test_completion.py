import pytest

from nar_scale.cluster.attempts import Attempt, is_complete, record
from nar_scale.config import dump_config, load_config

CONFIG = load_config("configs/quickstart_nar.yaml", ["training.steps=12"])


@pytest.fixture
def complete(tmp_path):
    """The directory of a run that is complete."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-000000012\n")
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    record(tmp_path, Attempt("7", 0, "n1", 1.0, 0).ended(12, "complete"))
    return tmp_path


def test_a_run_is_complete_once_an_attempt_has_said_so(complete):
    assert is_complete(CONFIG, complete)


def test_an_attempt_that_was_killed_after_the_last_step_is_not_the_end(complete):
    (complete / "attempts.jsonl").unlink()
    assert not is_complete(CONFIG, complete)
    record(complete, Attempt("7", 0, "n1", 1.0, 0).ended(12, "rank 1 on n2 ended without a word"))
    assert not is_complete(CONFIG, complete)


@pytest.mark.parametrize("setting", ["training.steps=13", "optimizer.learning_rate=0.5", "logging.every=7"])
def test_with_another_setting_the_ranks_decide(complete, setting):
    other = load_config("configs/quickstart_nar.yaml", ["training.steps=12", setting])
    assert not is_complete(other, complete)


@pytest.mark.parametrize("damaged", ["checkpoints/latest", "config.yaml"])
def test_a_damaged_directory_is_not_complete(complete, damaged):
    (complete / damaged).write_bytes(b"\xff\xfe")
    assert not is_complete(CONFIG, complete)
    (complete / damaged).unlink()
    assert not is_complete(CONFIG, complete)


def test_without_a_run_nothing_is_complete(tmp_path):
    assert not is_complete(CONFIG, tmp_path / "none")
