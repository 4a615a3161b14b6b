"""The scaling table as a picture."""

from __future__ import annotations

from pathlib import Path

from nar_scale.errors import UserError
from nar_scale.planning.plan import PlannedRun
from nar_scale.planning.plan_report import Scales


def draw_scaling(scales: Scales, device: str, path: Path) -> None:
    """Write a PNG with speed, MFU and duration by the number of devices.

    Raises:
        UserError: matplotlib is not installed, no number of devices has a plan, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("--png needs matplotlib; pip install 'nar_scale[report]'") from error
    runs = [run for run in scales.values() if isinstance(run, PlannedRun)]
    if not runs:
        raise UserError("--png: the run fits on none of the numbers of devices; leave it out")
    devices = [run.devices for run in runs]
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    speed, utilisation, duration = figure.subplots(1, 3)
    planned = [run.tokens_per_second for run in runs]
    speed.plot(devices, [planned[0] / devices[0] * n for n in devices], "--", color="gray", label="linear")
    speed.plot(devices, planned, "o-", label="planned")
    speed.set(ylabel="tokens/s", yscale="log")
    speed.legend()
    utilisation.plot(devices, [100 * run.mfu for run in runs], "o-")
    utilisation.set(ylabel="MFU, %", ylim=(0, None))
    duration.plot(devices, [run.days for run in runs], "o-")
    duration.set(ylabel="days", yscale="log")
    for axes in (speed, utilisation, duration):
        axes.set_xscale("log", base=2)
        axes.set(xlabel=f"{device} devices")
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
