"""What the host waits for in a training step on a GPU: an exact table, for our part and for DeepSpeed's.

Recorded on the CPU, as `waits.py` says. An entry that is new, gone, or seen more often than before fails: look where it
comes from, and whether it can be avoided, before it is written down here. Numbers are calls in a step with two
micro-batches a rank.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.distributed import jobs
from tests.distributed.conftest import corpus  # noqa: F401
from tests.distributed.test_data import prepared

from .waits import STEPS

pytestmark = pytest.mark.timeout(1800)
Table = dict[tuple[str, str], int]

READ, MADE, COPIED, WAITED = "_local_scalar_dense", "tensor", "cpu", "synchronize"

# nar_scale's own; none of it waits for a GPU
OURS: Table = {
    (READ, "nar_scale/data/loading/batch.py: __post_init__"): 2,  # of a batch on the host, where it is made
    (READ, "nar_scale/objectives/predicted.py: slots_for"): 2,  # of the batch on the host
    (READ, "nar_scale/objectives/terms.py: require"): 2,  # on CPUs alone; a GPU asserts by itself
    (READ, "nar_scale/training/trainer.py: <genexpr>"): 2,  # lengths of the batch on the host
    ("tolist", "nar_scale/training/distributed.py: read"): 1,  # has been copied while the step was taken
    ("tolist", "nar_scale/training/trainer.py: _dropout_seeds"): 1,  # seeds of dropout, made on the host
}
# whether a step was taken decides what the trainer counts; at other stages DeepSpeed looks by itself
OURS_OF_STAGE_0_IN_FP32: Table = {(READ, "nar_scale/training/engine/nonfinite.py: <genexpr>"): 1}
# counters of Muon and Lion, which are on the host
OURS_OF_AVERAGES: Table = {(READ, "nar_scale/training/optimizers/ema.py: step"): 3}

# DeepSpeed's: whether the gradient is finite, once before each update, and what it needs for that
_NORM = (READ, "deepspeed/runtime/utils.py: is_invalid_grad_norm")
_NORM_MADE = (MADE, "deepspeed/runtime/utils.py: mask_nan_or_inf_with_val_inplace")
_OVERFLOW_1_2 = (READ, "deepspeed/runtime/zero/stage_1_and_2.py: has_overflow")
_REDUCED_1_2 = (WAITED, "deepspeed/runtime/zero/stage_1_and_2.py: independent_gradient_partition_epilogue")
_REDUCED_3 = (WAITED, "deepspeed/runtime/zero/stage3.py: independent_gradient_partition_epilogue")
_STAGES_1_2: Table = {_NORM: 3, _NORM_MADE: 2}
_STAGE_3: Table = {
    _NORM: 1,
    (MADE, "deepspeed/runtime/zero/stage3.py: get_grad_norm_direct"): 2,
    _REDUCED_3: 2,  # after each backward pass; not to be avoided
    (WAITED, "deepspeed/runtime/zero/partition_parameters.py: _allgather_params_coalesced"): 1,  # of small weights
}
PARAMETERS = 19

# by stage and precision, on two ranks; stages 1 and 2 wait after each reduction, since `overlap_comm` is on
DEEPSPEED: dict[str, Table] = {
    "0-fp32": {(MADE, "deepspeed/runtime/utils.py: clip_grad_norm_"): 2},
    "0-bf16": {  # once for each parameter: on one GPU stage 1 or 2 is quicker
        (READ, "deepspeed/runtime/utils.py: has_overflow_serial"): PARAMETERS,
        (READ, "deepspeed/runtime/utils.py: has_overflow"): 1,
        (READ, "deepspeed/runtime/utils.py: get_weight_norm"): 4,
    },
    "1-fp32": {**_STAGES_1_2, _REDUCED_1_2: 1},
    "1-bf16": {**_STAGES_1_2, _REDUCED_1_2: 1, _OVERFLOW_1_2: 1},
    "2-fp32": {**_STAGES_1_2, _REDUCED_1_2: 2},
    "2-bf16": {**_STAGES_1_2, _REDUCED_1_2: 2, _OVERFLOW_1_2: 1},
    "3-fp32": _STAGE_3,
    "3-bf16": _STAGE_3,
}

# on one rank at stage 2 in bf16 unless said otherwise; DeepSpeed then waits once, before the update
ONE_RANK: Table = {**_STAGES_1_2, _OVERFLOW_1_2: 1}
KINDS: dict[str, Sequence[str]] = {
    "autoregressive": ["objective.kind=autoregressive"],
    "forgetful": ["objective.kind=autoregressive", "objective.mask_prob=0.2", "objective.attention_z_loss=true"],
    "block_diffusion": ["objective.kind=block_diffusion", "objective.block_size=8"],
    "hybrid": ["objective.kind=hybrid", "objective.block_size=8"],
    "unweighted": [
        *("objective.loss=unweighted", "objective.schedule=cosine", "objective.masking=bernoulli"),
        *("objective.random_token_prob=0.1", "objective.no_replace_prob=0.1"),
    ],
    "critic": ["objective.self_token_critic=true", "objective.self_conditioning=true"],
    "prefix": ["objective.prefix_length=3", "objective.condition_drop_prob=0.5"],
    "documents": ["data.directory={packed}", "data.document_field=documents.npy"],
    "documents_autoregressive": [
        *("data.directory={packed}", "data.document_field=documents.npy", "objective.kind=autoregressive")
    ],
    "padded": ["data.directory={padded}"],
    "padded_autoregressive": ["data.directory={padded}", "objective.kind=autoregressive"],
    "recomputed": ["model.activation_checkpointing=selective", "model.logits_chunk_size=2000"],
    "dropout_and_window": ["model.dropout=0.1", "model.window=7"],
    "muon": ["optimizer.kind=muon", "training.ema_decay=0.9"],
    "offload": ["zero.offload_optimizer=cpu"],
}
# what differs from ONE_RANK
OF_KIND: dict[str, Table] = {
    "hybrid": {  # two losses
        (READ, "nar_scale/objectives/predicted.py: slots_for"): 4,
        (READ, "nar_scale/objectives/terms.py: require"): 4,
    },
    "muon": {_NORM: 4, _NORM_MADE: 3, **OURS_OF_AVERAGES},  # three groups of parameters
    "offload": {  # gradients are looked at on their way to the host, one by one
        _NORM_MADE: 0,
        (READ, "deepspeed/runtime/zero/stage_1_and_2.py: update_offload_overflow_tracker"): PARAMETERS,
        (READ, "deepspeed/runtime/zero/stage_1_and_2.py: complete_grad_norm_calculation_for_cpu_offload"): 21,
        (MADE, "deepspeed/runtime/zero/stage_1_and_2.py: complete_grad_norm_calculation_for_cpu_offload"): 2,
        (WAITED, "deepspeed/runtime/zero/stage_1_and_2.py: _wait_for_offload_copies"): 1,
    },
}


def record(directory: Path, ranks: int, data: Path, cases: Mapping[str, Sequence[str]]) -> dict[str, Table]:
    """What each case waits for in a step, on the first rank."""
    config = jobs.write_config(directory / "small.yaml", data)
    common = ["training.steps=5", "logging.every=1000000", "checkpoint.every=1000000"]
    listing = [
        [str(config), [*common, f"training.run_directory={directory / name}", *overrides]]
        for name, overrides in cases.items()
    ]
    (directory / "cases.json").write_text(json.dumps(listing))
    script = Path(__file__).with_name("waits.py")
    command = jobs.forked_command(ranks, script, str(directory / "cases.json"))
    output = jobs.run(command, timeout=120 + 60 * len(cases))
    found = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("[[[")))
    assert all(times % STEPS == 0 for result in found for *_, times in result)
    return {
        name: {(what, where): times // STEPS for what, where, times in result} for name, result in zip(cases, found)
    }


@pytest.fixture(scope="module")
def by_stage(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, Table]:  # noqa: F811
    cases = {
        f"{stage}-{precision}": [f"training.zero_stage={stage}", f"training.precision={precision}"]
        for stage in range(4)
        for precision in ("fp32", "bf16")
    }
    return record(tmp_path_factory.mktemp("stages"), 2, corpus, cases)


@pytest.fixture(scope="module")
def by_kind(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, Table]:  # noqa: F811
    directory = tmp_path_factory.mktemp("kinds")
    packed = prepared(directory / "packed", 200, 3, document_ids=True, seq_len=jobs.SEQUENCE_LENGTH)
    padded = prepared(directory / "padded", 400, 3, packed=False, seq_len=jobs.SEQUENCE_LENGTH)
    common = ["training.zero_stage=2", "training.precision=bf16", "training.micro_batch_size=4"]
    cases = {
        kind: [*common, *(override.format(packed=packed, padded=padded) for override in overrides)]
        for kind, overrides in KINDS.items()
    }
    return record(directory, 1, corpus, cases)


def of_package(table: Table, name: str) -> Table:
    return {entry: times for entry, times in table.items() if entry[1].startswith(name)}


def test_all_that_is_found_is_somebodys(by_stage: dict[str, Table], by_kind: dict[str, Table]) -> None:
    for name, table in {**by_stage, **by_kind}.items():
        assert {**of_package(table, "nar_scale/"), **of_package(table, "deepspeed/")} == table, name


@pytest.mark.parametrize("case", DEEPSPEED)
def test_a_step_at_each_stage(by_stage: dict[str, Table], case: str) -> None:
    ours = {**OURS, **(OURS_OF_STAGE_0_IN_FP32 if case == "0-fp32" else {})}
    assert of_package(by_stage[case], "nar_scale/") == ours
    assert of_package(by_stage[case], "deepspeed/") == DEEPSPEED[case]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_each_kind(by_kind: dict[str, Table], kind: str) -> None:
    expected = {**OURS, **ONE_RANK, **OF_KIND.get(kind, {})}
    assert by_kind[kind] == {entry: times for entry, times in expected.items() if times}


def test_the_recorder_sees_what_waits() -> None:
    """In a process of its own, as the device pretends to be another."""
    code = """
import torch
from collections import Counter
from tests.training.waits import Asynchronous, Functions, Operators, pretend_to_be_asynchronous
pretend_to_be_asynchronous()
from deepspeed.accelerator import get_accelerator
found = Asynchronous.found = Counter()
values = torch.arange(3.0)
with Operators(found), Functions(found):
    values.sum().item(), bool(values.any()), values.nonzero(), values[values > 1], values.tolist()
    values.index_put_((values > 1,), torch.tensor([5.0]))
    torch.tensor(1.0, device="cpu"), values.new_tensor([1.0]), values.cpu()
    get_accelerator().synchronize(), get_accelerator().current_stream().synchronize()
    torch.tensor(1.0), values + 1, values[torch.tensor([1, 2])]  # these do not
print(sorted(f"{what} {times}" for (what, _), times in found.items()))
"""
    found = jobs.run([sys.executable, "-c", code]).splitlines()[-1]
    expected = {"_local_scalar_dense": 2, "nonzero": 1, "index": 1, "index_put_": 1, "tolist": 1, "tensor": 1}
    expected |= {"new_tensor": 1, "cpu": 1, "synchronize": 2}
    assert found == str(sorted(f"{what} {times}" for what, times in expected.items()))
