"""Charts from runs, and from the tables of benchmarks/RESULTS.md and docs/planning.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nar_scale.data import DatasetIndex, SampleOrder

REPOSITORY = Path(__file__).resolve().parents[2]
COLOURS = ("#2b6ca3", "#e08a2e", "#4a9a62", "#b5485d")
SIZE = (7.2, 3.4)


def chart() -> tuple[Figure, Any]:
    """An empty chart and its axes."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def table_after(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = (REPOSITORY / page).read_text()
    below = text[text.index(f"## {heading}\n") :]
    rows = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.group().splitlines()[2:]]


def draw_masks(evaluation: Path) -> Figure:
    """Cross-entropy of masked tokens by the masked fraction, from `evaluate --output`."""
    bins = json.loads(evaluation.read_text())["by_masked_fraction"]
    figure, axes = chart()
    edges = [[float(edge) for edge in re.findall(r"\d\.\d", name)] for name in bins]
    axes.bar(range(len(bins)), [each["nats_per_token"] for each in bins.values()], color=COLOURS[0], width=0.6)
    axes.set_xticks(range(len(bins)), [f"{low:.0%} to {high:.0%}" for low, high in edges])
    axes.set_xlabel("part of the sequence that is masked")
    axes.set_ylabel("nats per masked token")
    return figure


def draw_checkpoints(unbroken: Path, taken_over: Path) -> Figure:
    """The losses of a run and of one that went on from one of its checkpoints, from their `metrics.jsonl`."""
    figure, axes = chart()
    curves = (
        (unbroken, "unbroken, two processes", COLOURS[0], 5),
        (taken_over, "from step 400, one process", COLOURS[1], 1.5),
    )
    for log, label, colour, width in curves:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        points = [(line["step"], line["loss"]) for line in lines if "loss" in line and line["step"] > 200]
        axes.plot(*zip(*points), label=label, color=colour, linewidth=width, alpha=0.9)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, nats")
    axes.legend(frameon=False)
    return figure


def draw_stream(data: Path) -> Figure:
    """The same positions of a stream, shared out among one, two and four processes."""
    index = DatasetIndex.open(data, "train/*.tar", progress=False)
    _, samples = SampleOrder(index.counts, seed=0, window_shards=8).locate(np.arange(16))
    figure = Figure((7.2, 2.2), layout="constrained")
    axes = figure.subplots()
    for row, ranks in enumerate((1, 2, 4)):
        for position, sample in enumerate(samples.tolist()):
            rank = position % 8 * ranks // 8
            axes.add_patch(_square(position + (position >= 8) * 0.6, -row * 1.3, COLOURS[rank]))
            axes.text(
                position + (position >= 8) * 0.6 + 0.45,
                -row * 1.3 + 0.45,
                sample,
                ha="center",
                va="center",
                fontsize=6,
                color="white",
            )
        axes.text(-0.3, -row * 1.3 + 0.45, f"{ranks} process{'es' * (ranks > 1)}", ha="right", va="center", fontsize=9)
    for batch in range(2):
        axes.text(4 + batch * 8.6, 1.25, f"global batch {batch + 1}", ha="center", fontsize=9)
    axes.set_xlim(-3.2, 17)
    axes.set_ylim(-2.8, 1.8)
    axes.axis("off")
    return figure


def _square(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 0.9, 0.9, color=colour)


def draw_decoding() -> Figure:
    """Total variation by network calls, from the table of samplers."""
    figure, axes = chart()
    groups: dict[str, list[tuple[float, float]]] = {}
    for names, settings, calls, distance in table_after(
        "benchmarks/RESULTS.md", "How far samplers are from the model's distribution"
    ):
        for name in re.findall(r"`(\w+)`", names):
            if "rescale" not in settings:
                groups.setdefault(name, []).append((float(calls), float(distance)))
    markers = "osD^vP*XhH"
    for (name, points), marker in zip(sorted(groups.items()), markers):
        axes.plot(*zip(*sorted(points)), marker=marker, label=name, alpha=0.8, markersize=6, linewidth=1)
    axes.set_xlabel("network calls for four tokens")
    axes.set_ylabel("total variation")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_clusters() -> Figure:
    """Planned beside published throughput, from the table of docs/planning.md."""
    figure, axes = chart()
    rows = table_after("docs/planning.md", "Against published runs")
    numbers = [[float(cell.replace(",", "")) for cell in row[2:4]] for row in rows]
    devices = [row[1].split()[1].split("-")[0] for row in rows]
    for device, colour in zip(sorted(set(devices)), COLOURS):
        points = [each for each, own in zip(numbers, devices) if own == device]
        axes.scatter(*zip(*points), label=device, color=colour, s=28)
    ends = [min(map(min, numbers)) * 0.8, max(map(max, numbers)) * 1.25]
    axes.plot(ends, ends, color="#999999", linewidth=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="tokens/s of a device, published", ylabel="planned")
    axes.legend(frameon=False)
    return figure
