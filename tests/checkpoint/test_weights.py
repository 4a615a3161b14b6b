import pytest
import torch

from nar_scale.checkpoint.weights import check_weights_fit
from nar_scale.errors import CheckpointError
from nar_scale.objectives import build_wrapper
from tests.config.helpers import config_with
from tests.errors import refused
from tests.generation.helpers import export


@pytest.mark.parametrize(("length", "fits"), [(24, True), (48, False)])
def test_learned_positions_cannot_be_more_than_were_trained(tmp_path, length, fits):
    export(tmp_path / "model", "autoregressive", model={"positions": "learned"})  # 24 of them
    same = {"model.depth": 1, "objective.kind": "autoregressive", "model.positions": "learned"}
    with torch.device("meta"):
        wrapper = build_wrapper(config_with(**same, **{"model.max_seq_len": length}), 257)
    if fits:
        check_weights_fit(wrapper, tmp_path / "model")
        return
    with refused(CheckpointError, "model.max_seq_len", 24, "pos_emb"):
        check_weights_fit(wrapper, tmp_path / "model")
