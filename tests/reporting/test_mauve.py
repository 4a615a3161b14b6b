import pytest

from nar_scale.checkpoint import load_consolidated
from nar_scale.errors import UserError
from nar_scale.evaluation import CheckpointReference
from nar_scale.reporting.mauve import measure_mauve
from tests.errors import refused
from tests.generation.helpers import export


def reference_of(directory, kind):
    model = load_consolidated(export(directory, kind))
    return CheckpointReference(model.wrapper, model.tokenizer, str(directory))


def test_mauve_tells_alike_from_unlike_texts(tmp_path):
    reference = reference_of(tmp_path / "model", "autoregressive")
    letters, digits = ([reference.encode(f"{a}{b}" * 3) for a in each for b in each] for each in ("abcdefg", "0123456"))
    assert measure_mauve(reference, letters, letters) == pytest.approx(1, abs=1e-3)
    assert measure_mauve(reference, letters, digits) < 0.9
    masked = reference_of(tmp_path / "masked", "non_autoregressive")
    with refused(UserError, "MAUVE", tmp_path / "masked"):
        measure_mauve(masked, letters, digits)
