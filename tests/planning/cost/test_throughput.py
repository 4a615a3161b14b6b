"""The time of a step against published runs, and what must hold of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nar_scale.config import resolve_deepspeed_config, validate_config
from nar_scale.model.parameters import full_size
from nar_scale.objectives import build_wrapper
from nar_scale.planning.cost.communication import Interconnect, collectives_of_step
from nar_scale.planning.cost.devices import DEVICES
from nar_scale.planning.cost.partitions import ParameterSizes
from nar_scale.planning.cost.throughput import Ceilings, step_time
from nar_scale.planning.cost.workload import workload_of

from .published_runs import RUNS

DOCS = Path(__file__).parents[3] / "docs" / "planning.md"


def planned_speed(run):
    """Tokens/s of each device, of the run under ZeRO 3, which is what all of them were sharded like."""
    config = validate_config(
        {
            "model": {**run.model, "activation_checkpointing": run.recomputation},
            "objective": {"kind": "autoregressive"},
            "data": {"directory": "none"},
            "optimizer": {"learning_rate": 1e-3},
            "training": {
                "steps": 1,
                "global_batch_size": run.micro_batch * run.accumulation * run.devices,
                "micro_batch_size": run.micro_batch,
                "zero_stage": 3,
            },
        },
        run.name,
    )
    with torch.device("meta"):
        wrapper = build_wrapper(config, run.vocabulary)
    device = replace(DEVICES[run.device], **run.device_changes)
    sizes, resolved = ParameterSizes.of(wrapper, config.optimizer), resolve_deepspeed_config(config, run.devices)
    workload = workload_of(wrapper, config)
    repeated = run.extra_passes * 2 * sum(map(full_size, wrapper.net.attn_layers.parameters()))
    tokens = run.micro_batch * run.accumulation * config.model.max_seq_len
    step = step_time(
        config,
        replace(workload, matrix_flops=workload.matrix_flops + repeated),
        tokens,
        run.accumulation,
        sizes.shard(3, run.devices),
        collectives_of_step(sizes, config, resolved, run.devices, run.accumulation),
        Interconnect.of(device, run.devices, max(1, run.devices // device.devices_per_node)),
        Ceilings.of(device),
    )
    return tokens / step.total


def row(run, planned):
    """Of the table in docs/planning.md."""
    where = f"{run.devices} {run.device}"
    ratio = planned / run.tokens_per_second
    return f"| [{run.name}]({run.source}) | {where} | {run.tokens_per_second:,.0f} | {planned:,.0f} | {ratio:.2f} |"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.name} on {run.devices} {run.device}")
def test_published_runs_are_met(run):
    planned = planned_speed(run)
    assert planned == pytest.approx(run.tokens_per_second, rel=0.25)
    assert row(run, planned) in DOCS.read_text()
