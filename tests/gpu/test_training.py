"""Training on one GPU (NCCL) beside a plain loop on it, from the same weights; and going on where a run has stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from nar_scale.checkpoint import EMA
from nar_scale.config import Config
from tests.distributed import jobs
from tests.distributed.whole_batches import whole_batches

from .cases import AGAINST_PLAIN, FP16_SCALE, FP16_STEPS, FP16_STOP, OFFLOADED, OPTIMIZERS, RESUMED_STAGES, STEPS, STOP
from .corpora import VOCABULARY
from .plain import Trained, plain_loop
from .runs import RecordProperty, Run

pytestmark = pytest.mark.timeout(1800)  # the first test waits for a process to start

# Of losses, relative; of weights, the difference's norm over that of each.
#
# float32: sums in another order, 1e-6; but Adam turns a gradient that is all but zero into a step of full size with the
# sign of its rounding, and a few of those elements are 1e-3 of a weight. TF32, with 1e-3 in the losses too, is off.
#
# bfloat16: a rounded number is 2^-9 of itself away from the true one, and the mean of 512 tokens' losses is closer. The
# engine rounds the gradients of each micro-batch, the plain loop those of the whole batch: 2^-9 of them, which turns
# the sign of those that nearly cancel, and with it Adam's steps of 3e-3, 4 in all; embeddings are 2e-2 large.
TOLERANCES = {"fp32": (2e-5, 1e-3), "bf16": (2e-3, 3e-2)}


def assert_plain(run: Run, expected: Trained, tolerances: tuple[float, float]) -> None:
    of_losses, of_weights = tolerances
    assert list(run.losses.values()) == pytest.approx(expected.losses, rel=of_losses)
    assert expected.losses[-1] < expected.losses[0]
    jobs.assert_near(run.state(), expected.weights, of_weights)
    if run.config.training.ema_decay:
        jobs.assert_near(run.state(EMA), expected.averages, of_weights)


@pytest.fixture(scope="module")
def plain(device: torch.device) -> Callable[[Run], Trained]:
    """The plain loop of a run's configuration, which depends on no engine's settings."""

    @lru_cache
    def compute(key: str, weights: Path) -> Trained:
        return plain_loop(Config.model_validate_json(key), weights, device)

    def of(run: Run) -> Trained:
        training = run.config.training.model_copy(update={"run_directory": None, "zero_stage": 1})
        common = run.config.model_copy(update={"training": training, "zero": type(run.config.zero)()})
        return compute(common.model_dump_json(), run.weights_before)

    return of


@pytest.mark.parametrize("case", AGAINST_PLAIN, indirect=True)
def test_each_zero_stage_is_a_plain_loop(case: Run, plain: Callable[[Run], Trained]) -> None:
    assert_plain(case, plain(case), TOLERANCES[case.config.training.precision])


@pytest.mark.parametrize("case", OPTIMIZERS, indirect=True)
def test_optimizers_and_averages_are_those_of_a_plain_loop(case: Run, plain: Callable[[Run], Trained]) -> None:
    """Lion's steps are of one size, whose sign may turn where an average is next to zero.

    Muon's iterations are in bfloat16 on GPUs, and enlarge the rounding of directions of small gradient: written in two
    ways, they give weights that are 1e-2 apart.
    """
    of_losses, of_weights = TOLERANCES["fp32"]
    if case.config.optimizer.kind == "lion":
        of_weights = 1e-2
    if case.config.optimizer.kind == "muon" and torch.cuda.is_available():
        of_losses, of_weights = 2e-3, 3e-2
    assert_plain(case, plain(case), (of_losses, of_weights))


@pytest.mark.parametrize("case", OFFLOADED, indirect=True)
def test_an_optimizer_on_the_host_is_a_plain_loop(case: Run, plain: Callable[[Run], Trained]) -> None:
    precision = case.config.training.precision
    if case.config.optimizer.kind == "muon" and torch.cuda.is_available():
        precision = "bf16"
    assert_plain(case, plain(case), TOLERANCES[precision])


@pytest.mark.parametrize("case", ["stream"], indirect=True)
def test_the_device_gets_the_samples_in_their_order(case: Run, device: torch.device) -> None:
    assert set(case.found["devices"]) == {device.type}
    batches = [batch for _, batch in zip(range(STEPS), whole_batches(case.config, VOCABULARY))]
    for name in ("sample_ids", "tokens"):
        assert case.found[name] == torch.cat([getattr(batch, name) for batch in batches]).tolist()


@pytest.mark.needs_cuda("it is about what only a GPU reports")
@pytest.mark.parametrize("case", ["stream"], indirect=True)
def test_the_log_knows_the_memory_and_the_use_of_the_gpu(case: Run) -> None:
    for line in case.log.values():
        assert 0 < line["memory_now_gib"] <= line["memory_gib"] < 10
        assert line["host_memory_gib"] > 0
        assert 0 < line["mfu"] < 1


@pytest.mark.parametrize("case", [f"fp16-{stage}" for stage in RESUMED_STAGES], indirect=True)
def test_fp16_finds_its_loss_scale_and_then_learns_as_float32_does(case: Run, device: torch.device) -> None:
    taken = case.losses
    scales = [state["cur_scale"] for state in case.loss_scales.values()]
    assert 1 not in taken
    assert len(taken) >= 3
    assert list(taken) == list(range(min(taken), FP16_STEPS + 1))
    assert min(scales) < FP16_SCALE
    assert scales[-1] > min(scales)  # it has risen again
    expected = plain_loop(case.config, case.weights_before, device, taken)
    # a rounded number of fp16 is 2^-12 of itself away, and what is below 6e-8 of the scaled gradients is lost
    assert list(taken.values()) == pytest.approx(expected.losses, rel=2e-3)
    assert expected.losses[-1] < expected.losses[0]
    jobs.assert_near(case.state(), expected.weights, 3e-2)


@pytest.mark.parametrize(
    ("case", "resumed"), [(f"fp16-{stage}", f"fp16-{stage}-resumed") for stage in RESUMED_STAGES], indirect=True
)
def test_a_restart_goes_on_with_the_loss_scale(case: Run, resumed: Run) -> None:
    """And with how long ago it has changed: it rises at the same step."""
    assert FP16_STOP < FP16_STEPS
    assert resumed.loss_scales == case.loss_scales
    assert list(resumed.losses) == list(case.losses)
    assert list(resumed.losses.values()) == pytest.approx(list(case.losses.values()), rel=1e-4)


@pytest.mark.parametrize(
    ("case", "resumed"), [(f"unbroken-{stage}", f"resumed-{stage}") for stage in RESUMED_STAGES], indirect=True
)
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(case: Run, resumed: Run) -> None:
    """With torch's deterministic algorithms; without, FlashAttention's backward pass and others add in any order."""
    assert STOP < STEPS
    assert resumed.losses == case.losses
    weights = resumed.state()
    assert [name for name, weight in case.state().items() if not torch.equal(weight, weights[name])] == []


@pytest.mark.parametrize(("case", "resumed"), [("unbroken-by-default", "resumed-by-default")], indirect=True)
def test_a_resumed_run_is_nearly_the_unbroken_one_by_default(
    case: Run, resumed: Run, record_property: RecordProperty
) -> None:
    record_property("bit for bit without deterministic algorithms", resumed.losses == case.losses)
    of_losses, of_weights = TOLERANCES["bf16"]
    assert list(resumed.losses.values()) == pytest.approx(list(case.losses.values()), rel=of_losses)
    jobs.assert_near(resumed.state(), case.state(), of_weights)
