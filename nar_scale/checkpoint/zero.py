"""The weights of a training checkpoint, put together from what DeepSpeed's ranks have written."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nar_scale.errors import CheckpointError

WeightKind = Literal["model", "ema"]


def read_weights(checkpoint: Path, zero_stage: int, kind: WeightKind = "model") -> dict[str, Tensor]:
    """All weights of a DeepSpeed checkpoint by name, in float32 where the optimizer has them so.

    Args:
        kind: the weights themselves, or their moving average.

    Raises:
        CheckpointError: there is no moving average.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return _read_whole(checkpoint, kind) if zero_stage == 0 else _read_shards(checkpoint, kind)
        except KeyError as error:
            if error.args != ("ema",):
                raise
            raise CheckpointError(f"{checkpoint} has no moving average of the weights") from None


def _read_whole(checkpoint: Path, kind: WeightKind) -> dict[str, Tensor]:
    """Under ZeRO 0 one file has everything."""
    saved = torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)
    wrapped: dict[str, Any] = saved["optimizer"]
    if kind == "model" and "fp32_groups" not in wrapped:
        return saved["module"]
    optimizer = wrapped.get("optimizer_state_dict", wrapped)
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    if kind == "ema":
        return {name: optimizer["state"][number][kind] for number, name in enumerate(names)}
    # of which the bfloat16 weights of the module are a rounded copy
    return dict(zip(names, (weight for group in wrapped["fp32_groups"] for weight in group)))


def _read_shards(checkpoint: Path, kind: WeightKind) -> dict[str, Tensor]:
    from deepspeed.utils import zero_to_fp32

    if kind == "model":
        return zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), checkpoint.name)
    # what that function does, with the averages in the place of the weights
    optimizer_files = zero_to_fp32.get_optim_files(str(checkpoint))
    model_states = zero_to_fp32.parse_model_states(zero_to_fp32.get_model_state_files(str(checkpoint)))
    stage, ranks, weights, paddings = zero_to_fp32.parse_optim_states(optimizer_files, str(checkpoint))
    averages = [_averages(Path(file), stage, groups, kind) for file, groups in zip(optimizer_files, weights)]
    if stage == 3:
        gathered = zero_to_fp32._get_fp32_state_dict_from_zero3_checkpoint(ranks, averages, model_states, False)
        return zero_to_fp32.to_torch_tensor(gathered)
    return zero_to_fp32._get_fp32_state_dict_from_zero2_checkpoint(ranks, averages, model_states, False, paddings)


def _averages(file: Path, stage: int, weights: list[Tensor], kind: str) -> list[Tensor]:
    """A rank's averages in the shape of its weights `[elements]`, group by group."""
    # DeepSpeed's files hold objects of its own; the manifest has just vouched for them
    saved = torch.load(file, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
    states = saved["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]["state"]
    return [states[number][kind][: len(group)] for number, group in enumerate(weights)]
