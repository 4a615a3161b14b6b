"""The runs that the tests look at, and what each is set to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from tests.distributed.test_zero_options import LION, MUON

STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
KINDS = ("non_autoregressive", "autoregressive")
STEPS, STOP = 4, 2  # of a run, and of the first part of one that is resumed
FP16_STEPS, FP16_STOP = 8, 5  # the first few overflow
FP16_SCALE, FP16_WINDOW = 2**18, 2
EMA_DECAY = 0.4
WARM_STEPS = 6  # of a run that is observed when it is warm


@dataclass(frozen=True)
class Case:
    """Runs in one run directory, one after the other: those after the first resume it.

    Attributes:
        runs: the settings of each.
        data: name of the shards.
        observe: name of an observer.
        deterministic: use torch's deterministic algorithms.
        from_weights: start from the weights that the plain loop starts from.
        is_slow: one for the second process.
    """

    runs: tuple[tuple[str, ...], ...]
    data: str = "words"
    observe: str = "nothing"
    deterministic: bool = False
    from_weights: bool = True
    is_slow: bool = False


def run(
    *settings: str, steps: int = STEPS, stage: int = 2, kind: str = KINDS[0], precision: str = "bf16"
) -> tuple[str, ...]:
    """Settings of a run; those that are given win over those of this module."""
    return (
        f"objective.kind={kind}",
        f"training.steps={steps}",
        f"training.zero_stage={stage}",
        f"training.precision={precision}",
        *settings,
    )


AGAINST_PLAIN: dict[str, tuple[str, ...]] = {
    f"{kind}-{stage}-{precision}": run(stage=stage, kind=kind, precision=precision)
    for kind, stage, precision in product(KINDS, STAGES, PRECISIONS)
}
_EMA = f"training.ema_decay={EMA_DECAY}"
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "ema-0": run(_EMA, stage=0, precision="fp32"),
    "ema-3": run(_EMA, stage=3, precision="fp32"),
    "muon-0": run(*MUON, stage=0, precision="fp32"),
    "muon-ema-2": run(*MUON, _EMA, stage=2, precision="fp32"),
    "muon-3": run(*MUON, stage=3, precision="fp32"),
    "lion-2": run(*LION, stage=2, precision="fp32"),
    "lion-ema-3": run(*LION, _EMA, stage=3, precision="fp32"),
}
_OFFLOAD = "zero.offload_optimizer=cpu"
OFFLOADED: dict[str, tuple[str, ...]] = {
    "offload-1": run(_OFFLOAD, stage=1),
    "offload-2": run(_OFFLOAD, stage=2),
    "offload-2-fp32": run(_OFFLOAD, stage=2, precision="fp32"),
    "offload-3": run(_OFFLOAD, stage=3),
    "offload-parameters-3": run(_OFFLOAD, "zero.offload_parameters=cpu", stage=3),
    "offload-muon-2": run(_OFFLOAD, *MUON, stage=2, precision="fp32"),
}
RESUMED_STAGES = (0, 2, 3)
DROPOUT = "model.dropout=0.1"  # whose random numbers have to come again, too
WAITING: dict[str, tuple[str, ...]] = {
    "nar-2": run(steps=WARM_STEPS),
    "nar-3": run(steps=WARM_STEPS, stage=3),
    "nar-0-fp32": run(steps=WARM_STEPS, stage=0, precision="fp32"),
    "ar-2": run(steps=WARM_STEPS, kind="autoregressive"),
    "muon-ema-2": run(*MUON, _EMA, steps=WARM_STEPS),
}
_UNREPORTED = "logging.every=100"  # but for the last step
_WINDOW = "model.window=20"
_FLEX = "model.attention_kernel=flex"
COMPILED: dict[str, tuple[str, ...]] = {
    "compiled-nar-2": run("model.compile=true", "model.activation_checkpointing=selective", steps=WARM_STEPS),
    "compiled-ar-2": run("model.compile=true", steps=WARM_STEPS, kind="autoregressive"),
    "flex-nar-2": run(_FLEX, _WINDOW, steps=WARM_STEPS),
}
LARGE: dict[str, tuple[str, ...]] = {
    "nar-0": run(stage=0),
    "ar-2": run(stage=2, kind="autoregressive"),
    "nar-3-fp32": run(stage=3, precision="fp32"),
    "block-2-lion-ema": run(
        *LION, _EMA, "objective.kind=block_diffusion", "training.global_batch_size=4", "training.micro_batch_size=2"
    ),
}
RECOMPUTATIONS = ("none", "selective", "full")


def _fp16(stage: int, steps: int) -> tuple[str, ...]:
    scale = (f"training.initial_loss_scale={FP16_SCALE}", f"training.loss_scale_window={FP16_WINDOW}")
    return run(*scale, "checkpoint.every=1", "checkpoint.keep_last=100", stage=stage, steps=steps, precision="fp16")


def _all() -> Mapping[str, Case]:
    cases = {name: Case((settings,)) for name, settings in {**AGAINST_PLAIN, **OPTIMIZERS, **OFFLOADED}.items()}
    cases["stream"] = Case((run("data.loader_workers=1"),), observe="stream")
    for stage in RESUMED_STAGES:
        fp16 = _fp16(stage, FP16_STOP), _fp16(stage, FP16_STEPS)
        cases[f"fp16-{stage}"] = Case(fp16[1:])
        cases[f"fp16-{stage}-resumed"] = Case(fp16)
        parts = run(DROPOUT, stage=stage, steps=STOP), run(DROPOUT, stage=stage)
        cases[f"unbroken-{stage}"] = Case(parts[1:], deterministic=True)
        cases[f"resumed-{stage}"] = Case(parts, deterministic=True)
    default = run(DROPOUT, steps=STOP), run(DROPOUT)
    cases["unbroken-by-default"], cases["resumed-by-default"] = Case(default[1:]), Case(default)
    for name, settings in WAITING.items():
        cases[f"waits-{name}"] = Case(((*settings, _UNREPORTED),), observe="syncs")
    for name, settings in COMPILED.items():
        cases[name] = Case((settings,), data="ragged", observe="graphs", is_slow=True)
    for (name, settings), how in product(LARGE.items(), RECOMPUTATIONS):
        settings = (*settings, _UNREPORTED, f"model.activation_checkpointing={how}")
        cases[f"memory-{name}-{how}"] = Case((settings,), "long", "memory", from_weights=False, is_slow=True)
    return cases


CASES = _all()
