"""A plan as text for the terminal, and as numbers for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nar_scale.config import Config
from nar_scale.planning.memory_estimate import GIBIBYTE
from nar_scale.planning.plan import PlannedRun, Terms

Settings = Sequence[tuple[Config, PlannedRun | None]]
Scales = Mapping[int, PlannedRun | str]


def headline(run: PlannedRun, terms: Terms) -> str:
    """The plan in one line: speed, utilisation, duration and cost."""
    cost = f", {run.price:,.0f} at {terms.price:g} a device-hour" if run.price is not None else ""
    return (
        f"plan:   {run.devices:,} {terms.device.name} in {run.nodes:,} node(s), micro-batch "
        f"{run.config.training.micro_batch_size} x {run.accumulation}: {run.tokens_per_second:,.0f} tokens/s, "
        f"{run.tokens_per_second / run.devices:,.0f} a device, MFU {run.mfu:.0%}, {_days(run.days)}, "
        f"{run.devices * run.days * 24:,.0f} device-hours{cost}"
    )


def plan_as_text(run: PlannedRun, terms: Terms, settings: Settings, scales: Scales) -> str:
    """The sections after the summary."""
    sections = (
        _memory(run, terms),
        _settings(settings, run),
        _step(run, terms),
        _saving(run, terms),
        _scaling(scales, run.config.training.global_batch_size, terms),
    )
    return "\n\n".join("\n".join(section) for section in sections)


def plan_as_json(run: PlannedRun, terms: Terms, settings: Settings, scales: Scales) -> dict[str, Any]:
    """The same in numbers: bytes, bytes/s, seconds, tokens/s and FLOP/s."""
    return {
        "device": asdict(terms.device),
        "ceilings": asdict(terms.ceilings),
        "run": run_as_json(run),
        "settings": [
            {**setting_of(config), "run": None if fitting is None else run_as_json(fitting)}
            for config, fitting in settings
        ],
        "scales": [
            {"devices": devices, "problem": run} if isinstance(run, str) else run_as_json(run)
            for devices, run in scales.items()
        ],
    }


def run_as_json(run: PlannedRun) -> dict[str, Any]:
    """One planned run in numbers."""
    return {
        "devices": run.devices,
        "nodes": run.nodes,
        **setting_of(run.config),
        "micro_batch_size": run.config.training.micro_batch_size,
        "accumulation": run.accumulation,
        "memory": [asdict(part) for part in run.memory],
        "on_device": run.on_device,
        "on_host": run.on_host,
        "step_seconds": {**asdict(run.step), "total": run.step.total},
        "collectives": [{**asdict(each), "sent": each.sent(run.devices)} for each in run.collectives],
        "sent": run.sent,
        "tokens_per_second": run.tokens_per_second,
        "mfu": run.mfu,
        "days": run.days,
        "checkpoints": asdict(run.checkpoints),
        "data_bandwidth": run.data_bandwidth,
        "price": run.price,
    }


def setting_of(config: Config) -> dict[str, Any]:
    """ZeRO stage, offload and recomputation of a config."""
    return {
        "zero_stage": config.training.zero_stage,
        "offload_optimizer": config.zero.offload_optimizer,
        "offload_parameters": config.zero.offload_parameters,
        "activation_checkpointing": config.model.activation_checkpointing,
    }


def _memory(run: PlannedRun, terms: Terms) -> list[str]:
    lines = [f"memory of a device, {terms.usable_memory / GIBIBYTE:.1f} GiB of it for the run:"]
    lines += [f"  {part}" for part in run.memory if part.size]
    lines.append(f"  {'on the device':<18}{run.on_device / GIBIBYTE:>10.3f} GiB")
    if run.on_host:
        on_node = run.on_host * min(run.devices, terms.per_node) / GIBIBYTE
        lines.append(f"  {'in a node':<18}{on_node:>10.3f} GiB (memory of the host)")
    return lines


def _settings(settings: Settings, run: PlannedRun) -> list[str]:
    """Rows of ZeRO stages and offload, columns of recomputation."""
    columns = ("none", "selective", "full")
    rows: dict[str, dict[str, str]] = {}
    fastest = max((fitting.tokens_per_second for _, fitting in settings if fitting is not None), default=0.0)
    for config, fitting in settings:
        offload = {("none", "none"): "", ("cpu", "none"): ", optimizer on CPU", ("cpu", "cpu"): ", all on CPU"}
        name = offload[config.zero.offload_optimizer, config.zero.offload_parameters]
        cell = "does not fit"
        if fitting is not None:
            mark = " *" if fitting.tokens_per_second == fastest else ""
            speed = fitting.tokens_per_second / run.devices
            cell = f"{fitting.config.training.micro_batch_size} x {speed:,.0f}{mark}"
        rows.setdefault(f"ZeRO {config.training.zero_stage}{name}", {})[config.model.activation_checkpointing] = cell
    lines = [
        f"what fits on {run.devices:,}: largest micro-batch x tokens/s a device, by recomputation; * is the fastest:",
        f"  {'':<24}" + "".join(f"{column:>20}" for column in columns),
    ]
    return lines + [f"  {name:<24}" + "".join(f"{row.get(c, ''):>20}" for c in columns) for name, row in rows.items()]


def _step(run: PlannedRun, terms: Terms) -> list[str]:
    step = run.step
    lines = [f"time of a step, {step.total:.3f} s ({terms.ceilings.source}):"]
    parts = {
        "matrix products": step.matrices,
        "attention": step.attention,
        "memory traffic": step.traffic,
        "optimizer": step.optimizer,
        "communication, alone": step.exposed,
    }
    lines += [f"  {name:<22}{seconds:>10.3f} s  {seconds / step.total:>4.0%}" for name, seconds in parts.items()]
    lines.append(f"sent by a rank in a step: {_gigabytes(run.sent)} in {step.communication:.3f} s")
    lines += [
        f"  {each.name:<22}{_gigabytes(each.sent(run.devices)):>12}  {each.kind} of {_gigabytes(each.size)}, "
        f"{each.times} time(s)"
        for each in run.collectives
    ]
    return lines


def _saving(run: PlannedRun, terms: Terms) -> list[str]:
    plan = run.checkpoints
    return [
        f"checkpoints: {_gigabytes(plan.size)} each, on the disk in {plan.write_seconds:.0f} s at "
        f"{_gigabytes(terms.storage_bandwidth)}/s, of which the steps wait {plan.blocked_seconds:.1f} s",
        f"failures: one in {plan.failure_seconds / 3600:,.1f} h; so save every {plan.interval_steps:,} steps "
        f"({plan.interval_seconds / 60:,.0f} min; checkpoint.every is {run.config.checkpoint.every:,}), and "
        f"{plan.lost_fraction:.1%} of the time is lost",
        f"data: {run.data_bandwidth / 1e6:,.1f} MB/s are read in all, "
        f"{run.data_bandwidth / run.nodes / 1e6:,.2f} MB/s a node",
    ]


def _scaling(scales: Scales, batch: int, terms: Terms) -> list[str]:
    titles = ("devices", "batch", "micro-batch", "GiB", "step s", "tokens/s", "MFU", "waiting", "days", "save every")
    lines = ["the same run on other numbers of devices:", _row(*titles, *(["cost"] if terms.price is not None else []))]
    raised = False
    for devices, run in scales.items():
        if isinstance(run, str):
            lines.append(f"{devices:>10,}  {run}")
            continue
        training = run.config.training
        larger = training.global_batch_size > batch
        raised = raised or larger
        cells = [
            f"{devices:,}",
            f"{training.global_batch_size:,}{'*' if larger else ''}",
            f"{training.micro_batch_size} x {run.accumulation}",
            f"{run.on_device / GIBIBYTE:.1f}",
            f"{run.step.total:.3f}",
            f"{run.tokens_per_second:,.0f}",
            f"{run.mfu:.0%}",
            f"{run.step.exposed / run.step.total:.0%}",
            f"{run.days:.2f}",
            f"{run.checkpoints.interval_steps:,}",
        ]
        lines.append(_row(*cells, *([] if run.price is None else [f"{run.price:,.0f}"])))
    return lines + (["  * the global batch is raised to one sequence a device"] if raised else [])


def _row(*cells: str) -> str:
    widths = (10, 9, 12, 8, 9, 14, 6, 9, 9, 12, 12)
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))


def _gigabytes(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _days(days: float) -> str:
    return f"{days:.1f} days" if days >= 1 else f"{days * 24:.1f} hours"
