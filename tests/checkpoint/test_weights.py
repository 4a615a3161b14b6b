from itertools import pairwise

import pytest
import torch

from nar_scale.checkpoint import WEIGHT, ConsolidatedWeights, load_consolidated
from nar_scale.checkpoint.weights import StartingWeights, check_weights_fit
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


AR, NAR, BLOCK = "autoregressive", "non_autoregressive", "block_diffusion"
EMBEDDINGS, HEAD = "net.token_emb.weight", "net.to_logits.weight"


def model(kind, vocabulary_size=257, **settings):
    """On the meta device, of the size that `export` makes."""
    block = {"objective.block_size": 8} if kind == BLOCK else {}
    shape = {"model.depth": 1, "model.max_seq_len": 24, "objective.kind": kind}
    with torch.device("meta"):
        return build_wrapper(config_with(**{**shape, **block, **settings}), vocabulary_size)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [NAR, BLOCK])
def test_an_autoregressive_model_gets_a_row_for_the_mask(tmp_path, kind, tied):
    export(tmp_path / "model", AR, model={"tie_embeddings": tied})
    expected = dict(load_consolidated(tmp_path / "model").wrapper.named_parameters())
    objective = model(kind, **{"model.tie_embeddings": tied})
    weights = StartingWeights(ConsolidatedWeights(tmp_path / "model"), objective)
    assert weights.resized == ([EMBEDDINGS] if tied else [EMBEDDINGS, HEAD])
    assert weights.initial == []
    for name, shape in weights.shapes.items():
        assert weights.kinds[name] == {WEIGHT}
        size = torch.Size(shape).numel()
        cuts = [0, size // 3, size - 5, size]  # one within the row of the mask
        parts = [weights.read(WEIGHT, name, start, stop) for start, stop in pairwise(cuts)]
        for found in (weights.read(WEIGHT, name, 0, size), torch.cat(parts)):
            assert found.equal(expected[name].flatten())
        if name in weights.resized:
            assert shape[0] == len(expected[name]) + 1 == objective.mask_id + 1
    assert EMBEDDINGS in check_weights_fit(objective, tmp_path / "model")[0]


def test_an_autoregressive_model_has_no_row_for_the_mask(tmp_path):
    export(tmp_path / "model", NAR)
    expected = dict(load_consolidated(tmp_path / "model").wrapper.named_parameters())
    weights = StartingWeights(ConsolidatedWeights(tmp_path / "model"), model(AR))
    for name, shape in weights.shapes.items():
        found = weights.read(WEIGHT, name, 0, torch.Size(shape).numel()).view(shape)
        assert found.equal(expected[name][: shape[0]])
        assert len(expected[name]) - len(found) == (name in (EMBEDDINGS, HEAD))
    assert HEAD in weights.remarks()[0]


@pytest.mark.parametrize("kind", [AR, NAR, BLOCK])
def test_a_model_of_the_same_kind_is_taken_as_it_is(tmp_path, kind):
    export(tmp_path / "model", kind)
    assert check_weights_fit(model(kind), tmp_path / "model") == []


@pytest.mark.parametrize(("source", "kind"), [(NAR, BLOCK), (BLOCK, NAR)])
def test_models_with_a_mask_start_from_each_other(tmp_path, source, kind):
    export(tmp_path / "model", source)
    assert check_weights_fit(model(kind), tmp_path / "model") == []


@pytest.mark.parametrize("source", [AR, NAR])
def test_what_an_objective_adds_starts_new_and_is_named(tmp_path, source):
    export(tmp_path / "model", source)
    added = {"objective.self_conditioning": True, "objective.self_token_critic": True}
    weights = StartingWeights(ConsolidatedWeights(tmp_path / "model"), model(NAR, **added))
    assert sorted(weights.initial) == ["null_embed", "to_self_cond.weight", "token_critic.to_logits.weight"]
    assert {name for name, kinds in weights.kinds.items() if not kinds} == set(weights.initial)
    assert all(name in weights.remarks()[-1] for name in weights.initial)


REFUSED = {
    "masks, another vocabulary": (NAR, {}, (NAR, 258, {}), (EMBEDDINGS, "data.vocabulary_size")),
    "more rows than the mask's": (AR, {}, (NAR, 258, {}), (EMBEDDINGS, "data.vocabulary_size")),
    "a token for the mask": (AR, {}, (NAR, 256, {}), (EMBEDDINGS, "data.vocabulary_size")),
    "the mask for a token": (NAR, {}, (AR, 258, {}), (EMBEDDINGS, "data.vocabulary_size")),
    "fewer blocks": (AR, {"model": {"depth": 2}}, (NAR, 257, {}), ("net.attn_layers.blocks.1.", "absent")),
    "tied": (AR, {"model": {"tie_embeddings": True}}, (NAR, 257, {}), (HEAD, "absent")),
    "self-conditioning": (NAR, {"objective": {"self_conditioning": True}}, (NAR, 257, {}), ("null_embed", "absent")),
}


@pytest.mark.parametrize(("source", "sections", "target", "named"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(tmp_path, source, sections, target, named):
    objective = sections.get("objective", {})
    of_kind = {"kind": source, **objective}
    export(tmp_path / "model", source, **{**sections, **({"objective": of_kind} if objective else {})})
    kind, vocabulary_size, settings = target
    with refused(CheckpointError, *named):
        check_weights_fit(model(kind, vocabulary_size, **settings), tmp_path / "model")
