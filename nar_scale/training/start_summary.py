"""What a run says when it starts: a short table; all settings are in `config.yaml` and `deepspeed.json` of the run."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config, batch_size_at, gradient_accumulation_steps, samples_before, steps_of_run
from nar_scale.model.parameters import full_size
from nar_scale.training.data.build import TrainingData
from nar_scale.training.data.validation import remark_on_few_samples
from nar_scale.training.distributed import World
from nar_scale.training.engine.zero_engine import ZeroEngine

_WIDTH, _INDENT = 110, 10
_MOST_LINES = 6
_SHOWN_ELSEWHERE = {
    *("model.dim", "model.depth", "model.heads", "model.max_seq_len", "objective.kind", "data.directory"),
    *("training.steps", "training.samples", "training.tokens", "training.global_batch_size", "training.precision"),
    *("training.micro_batch_size", "training.zero_stage", "training.run_directory", "training.sequence_parallel_size"),
}


def start_summary(
    config: Config, world: World, engine: ZeroEngine, data: TrainingData, state: TrainingState, start: str
) -> str:
    """The table: where the run starts, its model, data, batch, length, devices, directory and settings.

    Args:
        config: of the run.
        world: this process and its peers.
        engine: with the model.
        data: of the run.
        state: where the run is.
        start: from what it starts, see `start_from_nothing`, `start_from_checkpoint` and `start_from_other_weights`.
    """
    rows = {
        "start": start,
        "model": _model(config, engine),
        "data": f"{_directories(config)}{data.summary}{remark_on_few_samples(data.validation)}",
        "batch": _batch(config, world, state.step),
        "length": _length(config, data),
        "device": f"{_devices(world)}, {config.training.precision}, ZeRO {state.zero_stage}",
        "run": f"{config.training.run_directory}, with all settings in config.yaml and deepspeed.json",
    }
    lines = [line for name, text in rows.items() for line in _row(name, text)]
    return "\n".join([*lines, *settings_rows(config)])


def start_from_nothing(config: Config) -> str:
    """Of a run with new weights."""
    return f"training {steps_of_run(config):,} steps from new weights"


def start_from_checkpoint(config: Config, state: TrainingState, checkpoint: Path) -> str:
    """Of a run that goes on from a checkpoint, of its own or of another run."""
    steps = f"step {state.step} of {steps_of_run(config):,}"
    return f"resuming at {steps} with weights, optimizer and position in the data of {checkpoint}"


def start_from_other_weights(config: Config, source: Path, step: int) -> str:
    """Of a run that takes the weights of a checkpoint and nothing else of it.

    Args:
        step: that they were trained for, 0 if that is not known.
    """
    trained = f" (step {step:,})" if step else ""
    return (
        f"training {steps_of_run(config):,} steps from the weights of {source}{trained} alone: optimizer, schedule and "
        "data start anew"
    )


def differing_settings(config: Config) -> dict[str, Any]:
    """The settings that are not the defaults and that no other row shows: `section.key` to a value as in JSON."""
    differing = config.model_dump(mode="json", exclude_defaults=True, exclude={"data": {"sources"}})
    return {key: value for key, value in _flat(differing, "") if key not in _SHOWN_ELSEWHERE}


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings_rows(config: Config) -> list[str]:
    """The lines of the settings that differ from the defaults; what is long, and what is beyond some lines, is cut."""
    settings = [f"{key}={_shown(value)}" for key, value in differing_settings(config).items()]
    if not settings:
        return _row("settings", "the defaults")
    lines = _row("settings", f"{', '.join(settings)} (else the defaults)")
    if len(lines) > _MOST_LINES:
        kept = lines[:_MOST_LINES]
        rest = len(settings) - f"{' '.join(kept)} ".count(", ")
        return [*kept, f"{'':{_INDENT}}and {rest} more that differ from the defaults"]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and " " not in value and len(value) <= 60:
        return value
    text = json.dumps(value, separators=(",", ":"))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _row(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{name:{_INDENT}}",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _model(config: Config, engine: ZeroEngine) -> str:
    parameters, model = sum(map(full_size, engine.module.parameters())), config.model
    size = f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.2f} million"
    return (
        f"{config.objective.kind.replace('_', '-')}, {size} parameters: {model.depth} blocks, {model.dim} wide, "
        f"{model.heads} heads, {model.max_seq_len:,} tokens"
    )


def _directories(config: Config) -> str:
    return "" if config.data.sources else f"{config.data.directory}, "


def _batch(config: Config, world: World, step: int) -> str:
    training, length = config.training, config.model.max_seq_len
    size = batch_size_at(training, step)
    accumulation = gradient_accumulation_steps(config, world.size, step)
    ranks = _count(world.size, "rank")
    if world.sp_size > 1:
        ranks = f"{_count(world.dp_size, 'group')} of {world.sp_size} ranks that share sequences"
    return (
        f"{size:,} sequences, {size * length:,} tokens a step = {ranks} x "
        f"{_count(accumulation, 'micro-batch', 'es')} of {training.micro_batch_size} x {length:,} tokens"
    )


def _length(config: Config, data: TrainingData) -> str:
    samples = samples_before(config.training, steps_of_run(config))
    tokens = samples * config.model.max_seq_len
    available = sum(index.num_samples for index in data.sources.values())
    epochs = f", {samples / available:.3g} epochs" if len(data.sources) == 1 and available else ""
    return f"{steps_of_run(config):,} steps, {samples:,} sequences, {tokens:,} tokens{epochs}"


def _devices(world: World) -> str:
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    return f"{world.size} x {name}"


def _count(number: int, name: str, plural: str = "s") -> str:
    return f"{number:,} {name}{'' if number == 1 else plural}"
