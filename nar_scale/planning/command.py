"""The job of `launcher/plan.py`: a YAML file and terms in, a plan out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nar_scale.config import Config, check_run, load_config
from nar_scale.errors import UserError
from nar_scale.files import write_atomically
from nar_scale.logging_setup import silence_libraries
from nar_scale.objectives import Objective
from nar_scale.planning.cost.devices import find_device
from nar_scale.planning.cost.measured import measured_ceilings
from nar_scale.planning.cost.throughput import Ceilings
from nar_scale.planning.plan import (
    SCALES,
    DoesNotFitError,
    Terms,
    plan_run,
    plan_scales,
    plan_settings,
    setting_name,
)
from nar_scale.planning.plan_chart import draw_scaling
from nar_scale.planning.plan_report import headline, plan_as_json, plan_as_text
from nar_scale.planning.report import model_of, settings_in_full, summarize


@dataclass(frozen=True)
class Options:
    """What the command line says beside the YAML; None for what is not given.

    Attributes:
        devices: in all.
        device: the kind.
        nodes: in which they stand.
        interconnect: Gbit/s of a device to other nodes.
        price: of a device and hour.
        measured: the GPU kit's `facts.json`.
        failure_hours: device-hours between failures.
        storage: GB/s of the file system of the checkpoints.
        json: where the numbers go.
        png: where the picture goes.
        settings: whether to print the settings in full.
    """

    devices: int
    device: str
    nodes: int | None
    interconnect: float | None
    price: float | None
    measured: Path | None
    failure_hours: float
    storage: float
    json: Path | None
    png: Path | None
    settings: bool


def plan(config_file: str, overrides: Sequence[str], options: Options) -> str:
    """Plan the run of a YAML file; writes the files that the options name.

    Returns:
        the plan as text.

    Raises:
        UserError: the config or an option is wrong, or the run fits nowhere.
    """
    terms = terms_of(options)
    config = load_config(config_file, overrides)
    check_run(config)
    if config.deepspeed:
        silence_libraries()  # DeepSpeed is asked whether it knows the keys
    wrapper, infos = model_of(config)
    try:
        run = plan_run(wrapper, config, terms, options.devices)
    except DoesNotFitError as error:
        raise UserError(f"{error}; {_remedy(wrapper, config, terms, options.devices)}") from error
    settings = list(plan_settings(wrapper, config, terms, options.devices))
    scales = plan_scales(wrapper, config, terms)
    if options.json is not None:
        _write(options.json, json.dumps(plan_as_json(run, terms, settings, scales), indent=1) + "\n")
    if options.png is not None:
        draw_scaling(scales, terms.device.name, options.png)
    summary = [*summarize(run.config, options.devices, wrapper, infos), headline(run, terms)]
    parts = ["\n".join(summary), plan_as_text(run, terms, settings, scales)]
    return "\n\n".join([*parts, *([settings_in_full(run.config, options.devices)] if options.settings else [])])


def terms_of(options: Options) -> Terms:
    """What the options say of devices, network and cost, with the device's own figures where they say nothing.

    Raises:
        UserError: the device is not known, or the nodes do not fit the devices.
    """
    device = find_device(options.device)
    if options.nodes is not None and options.nodes > options.devices:
        raise UserError(f"--nodes {options.nodes} are more than --devices {options.devices}; a node has one at least")
    if options.nodes is not None and options.devices % options.nodes:
        raise UserError(f"--devices {options.devices} do not divide by --nodes {options.nodes}; take a multiple of it")
    per_node = device.devices_per_node if options.nodes is None else options.devices // options.nodes
    network = device.network_bandwidth if options.interconnect is None else options.interconnect * 1e9 / 8
    return Terms(
        device=device,
        ceilings=Ceilings.of(device) if options.measured is None else measured_ceilings(options.measured, device),
        per_node=per_node,
        network_bandwidth=network,
        price=options.price,
        hours_between_failures=options.failure_hours,
        storage_bandwidth=options.storage * 1e9,
    )


def _remedy(wrapper: Objective, config: Config, terms: Terms, devices: int) -> str:
    """What fits in place of a setting that does not: the fastest other one, or the fewest devices, or neither."""
    fitting = [run for _, run in plan_settings(wrapper, config, terms, devices) if run is not None]
    if fitting:
        fastest = max(fitting, key=lambda run: run.tokens_per_second)
        return f"the fastest that fits is {setting_name(fastest.config)}"
    for more in (count for count in SCALES if count > devices):
        if any(run is not None for _, run in plan_settings(wrapper, config, terms, more)):
            return f"nothing fits on {devices}, but something does on {more}; take so many or another device"
    return "nothing fits on any number of these devices; take a smaller model, shorter sequences or another device"


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
