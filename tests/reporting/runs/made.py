"""Run directories as a run writes them, without the training."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nar_scale.config import dump_config, validate_config
from nar_scale.evaluation import Likelihood, pool_likelihoods
from nar_scale.evaluation.likelihood import MeanLoss
from nar_scale.files import write_atomically
from nar_scale.reporting.likelihoods import describe_likelihood
from nar_scale.training.environment import write_environment
from nar_scale.training.metrics.writer import MetricsWriter

STEPS = 200


def run_directory(
    path: Path, more: Callable[[MetricsWriter], None] | None = None, steps: int = STEPS, **sections: dict[str, Any]
) -> Path:
    """A run of `STEPS` steps that has got to `steps`; `sections` are added to its settings, `more` writes more."""
    settings: dict[str, dict[str, Any]] = {
        "model": {"dim": 32, "depth": 2, "heads": 2, "max_seq_len": 16},
        "objective": {"kind": "non_autoregressive"},
        "data": {"directory": "data/prose"},
        "optimizer": {"learning_rate": 0.003},
        "training": {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2, "run_directory": str(path)},
        "logging": {"evaluate_every": 50},
    }
    for name, section in sections.items():
        settings.setdefault(name, {}).update(section)
    path.mkdir(parents=True)
    write_atomically(path / "config.yaml", dump_config(validate_config(settings, "test")).encode())
    write_environment(path, torch.device("cpu"), 2, parameters=12345)
    writer = MetricsWriter(path, 0)
    for step in range(10, steps + 1, 10):
        loss = 2 + 4 * math.exp(-step / 80)
        bins = {f"masked_{low / 5:.1f}_to_{(low + 1) / 5:.1f}": loss + low / 5 for low in range(5)}
        values = {"loss": loss, **bins, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens_per_second": 1000.0 + step}
        writer.scalars(step, values)
        if step % 50 == 0:
            validation = {"nats_per_token": loss + 0.1, "standard_error": 0.01, "bits_per_byte": 1.5}
            writer.scalars(step, {f"validation_{name}": value for name, value in validation.items()})
    if more is not None:
        more(writer)
    writer.close()
    return path


def two_samples(writer: MetricsWriter) -> None:
    writer.texts(100, ["an early text", "another early text"])
    writer.texts(200, ["a late text", "another late text"])


def an_image(writer: MetricsWriter) -> None:
    writer.image(100, np.arange(64, dtype=np.uint8).reshape(8, 8))


def write_evaluation(run: Path, **changes: Any) -> None:
    """What `evaluate` writes of two sources, with changes."""
    sources = {
        name: Likelihood(nats, 0.02, 640, 40, "bound", 4.0, "NELBO", {"masked_0.8_to_1.0": MeanLoss(nats + 1, 128)})
        for name, nats in (("prose", 2.0), ("code", 1.0))
    }
    result = {
        **describe_likelihood(pool_likelihoods(sources)),
        "checkpoint": "exported/mine",
        "step": 200,
        "weights": "model",
        "data": ["data/prose", "data/code"],
        "split": "validation",
        "by_source": {name: describe_likelihood(each) for name, each in sources.items()},
        **changes,
    }
    (run / "evaluation.json").write_text(json.dumps(result))
