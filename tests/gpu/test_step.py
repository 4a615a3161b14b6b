"""What a training step costs beside its arithmetic: waits of the host, memory, compilations."""

from __future__ import annotations

import pytest
import torch

from nar_scale.config import resolve_deepspeed_config
from nar_scale.data import DatasetInfo
from nar_scale.objectives import build_wrapper
from nar_scale.planning.memory_estimate import GIBIBYTE, estimate_memory
from tests.training.test_host_synchronisation import OURS, OURS_OF_AVERAGES, OURS_OF_STAGE_0_IN_FP32

from .cases import COMPILED, LARGE, RECOMPUTATIONS, WAITING, WARM_STEPS
from .observers import ON_GPU
from .runs import RecordProperty, Run
from .syncs import Sync

pytestmark = pytest.mark.timeout(1800)

ALLOWED = {
    ("nar_scale/training/distributed.py", "read"): "for sums over ranks, which are there before the forward pass",
    ("nar_scale/training/engine/nonfinite.py", "all_finite"): "at ZeRO 0 in float32, where DeepSpeed does not look",
}
"""Where nar_scale waits in a step, as file and function, and what for."""

ON_CPUS = {tuple(where.split(": ")) for _, where in {**OURS, **OURS_OF_STAGE_0_IN_FP32, **OURS_OF_AVERAGES}}
"""What a rehearsal sees more, of numbers that are on the host also where there is a GPU."""


def syncs_of(run: Run) -> dict[Sync, int]:
    return {Sync(*fields): count for *fields, count in run.found["syncs"]}


@pytest.mark.parametrize("case", [f"waits-{name}" for name in WAITING], indirect=True)
def test_the_host_does_not_wait_in_a_step(case: Run, record_property: RecordProperty) -> None:
    """Outside reports. What DeepSpeed itself waits for is recorded."""
    syncs, allowed = syncs_of(case), ALLOWED.keys() if ON_GPU else {*ALLOWED, *ON_CPUS}
    for sync, count in syncs.items():
        if sync.owner != "nar_scale":
            record_property(f"{sync.file}:{sync.line} {sync.function}", f"{count} x {sync.code}")
    ours = [
        f"{sync.file}:{sync.line} in {sync.function}, {count} x: {sync.code}"
        for sync, count in syncs.items()
        if sync.owner in ("nar_scale", "autograd") and (sync.file, sync.function) not in allowed
    ]
    assert not ours, "\n".join(ours)


@pytest.mark.parametrize("case", COMPILED, indirect=True)
def test_nothing_is_compiled_again_after_the_second_step(case: Run, record_property: RecordProperty) -> None:
    """Though each step has other lengths and other numbers of masked tokens.

    The last one is not looked at: a checkpoint is written after it, with the logits of a shorter sequence.
    """
    graphs = case.found["graphs"]
    record_property("graphs after each step", graphs)
    record_property("graph breaks", case.found["breaks"])
    assert len(graphs) == WARM_STEPS
    assert graphs[1] > 0
    assert set(graphs[1:-1]) == {graphs[1]}


@pytest.mark.parametrize("case", [f"memory-{name}-{how}" for name in LARGE for how in RECOMPUTATIONS], indirect=True)
def test_memory_of_a_step_is_what_the_dry_run_says(case: Run, record_property: RecordProperty) -> None:
    """Within a tenth; of a step that is not reported, which for a moment takes a copy of the weights more.

    Within three tenths in a rehearsal: on CPUs norms keep their inputs in float32, too.
    """
    vocabulary_size = DatasetInfo.load(str(case.config.data.directory)).vocabulary_size
    with torch.device("meta"):
        wrapper = build_wrapper(case.config, vocabulary_size)
    parts = estimate_memory(wrapper, case.config, resolve_deepspeed_config(case.config, 1), 1)
    estimate = sum(part.size for part in parts if part.location == "device")
    measured = case.found["peak"]
    for name, size in {"estimate": estimate, **case.found, **{part.name: part.size for part in parts}}.items():
        record_property(name, f"{size / GIBIBYTE:.3f} GiB")
    record_property("measured over estimated", f"{measured / estimate:.3f}")
    assert measured == pytest.approx(estimate, rel=0.1 if ON_GPU else 0.3)
