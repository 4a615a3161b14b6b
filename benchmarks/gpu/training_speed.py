"""Training speed: tokens/s, MFU and memory of whole models through the trainer, and a plain loop beside x-transformers.

python -m benchmarks.gpu.training_speed --output FILE.json [--seconds N] [--rehearse]

The models are that of configs/1.4b_nar.yaml and its autoregressive twin, of 1.4 billion parameters, and two with the
shapes of GPT-3's small and medium (arXiv:2005.14165, table 2.1) and the same settings otherwise. On an H100 all takes
some seven minutes; what does not fit into the time is left out, from the end of the list in `measure`.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.gpu import facts, stage
from benchmarks.gpu.speed.attempts import Attempts, prepare_rehearsal
from benchmarks.gpu.speed.comparison import Setting, compare_training
from benchmarks.gpu.speed.model_runs import Model, ModelRuns
from benchmarks.gpu.speed.peers import Shape
from benchmarks.gpu.speed.random_data import write_random_tokens
from nar_scale.logging_setup import silence_libraries
from nar_scale.training import World, connect, disconnect

CONFIGS = {"NAR": stage.ROOT / "configs/1.4b_nar.yaml", "AR": stage.ROOT / "configs/1.4b_ar.yaml"}
WIDTHS = {
    "1.4B": (),
    "350M": ("model.dim=1024", "model.depth=24", "model.heads=16", "model.feedforward_dim=2816"),
    "125M": ("model.dim=768", "model.depth=12", "model.heads=12", "model.feedforward_dim=2048"),
}
TINY = ("model.dim=64", "model.depth=2", "model.heads=2", "model.feedforward_dim=176", "model.max_seq_len=64")


@dataclass(frozen=True)
class Scale:
    """What differs between a GPU and a rehearsal: sizes and lengths of what is measured."""

    product: int
    products: int
    vocabulary: int
    length: int
    overrides: tuple[str, ...]
    sizes: tuple[int, ...]
    accumulation: int
    steps: int
    widths: tuple[str, ...]
    setting: Setting

    def model(self, width: str, objective: str) -> Model:
        """The model of a width, trained with an objective."""
        given = self.vocabulary + (objective == "AR")  # the mask is one more
        overrides = (*WIDTHS[width], *self.overrides, f"data.vocabulary_size={given}")
        return Model(
            name=f"{width} {objective}",
            config_file=CONFIGS[objective],
            overrides=overrides,
            accumulation=self.accumulation,
            steps=self.steps,
            sizes=self.sizes,
            has_goal=width == "1.4B",
        )


GPU = Scale(
    product=8192,
    products=1000,
    vocabulary=50_303,
    length=2048,
    overrides=(),
    sizes=(1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64),
    accumulation=4,
    steps=9,
    widths=("125M", "350M"),
    setting=Setting(
        name="125M",
        shape=Shape(dim=768, depth=12, heads=12, hidden=2048, length=2048, vocabulary=50_304),
        micro_batches=(8, 4, 2),
        calls=4,
        seconds=8.0,
        compile_seconds=60.0,
    ),
)
REHEARSAL = Scale(
    product=256,
    products=5,
    vocabulary=510,
    length=64,
    overrides=TINY,
    sizes=(1, 2),
    accumulation=2,
    steps=3,
    widths=(),
    setting=Setting(
        name="125M",
        shape=Shape(dim=64, depth=1, heads=2, hidden=176, length=64, vocabulary=511),
        micro_batches=(2,),
        calls=1,
        seconds=2.0,
        compile_seconds=0.0,
    ),
)


def main() -> int:
    arguments = stage.arguments(__doc__)
    record = stage.Record(arguments.output)
    if arguments.rehearse:
        prepare_rehearsal()
    silence_libraries()
    world = connect()
    attempts = Attempts(record, arguments.seconds, world.device, arguments.rehearse)
    with tempfile.TemporaryDirectory() as directory:
        measure(attempts, world, Path(directory), REHEARSAL if arguments.rehearse else GPU)
    disconnect()
    return int(attempts.failed)


def measure(attempts: Attempts, world: World, directory: Path, scale: Scale) -> None:
    """Everything, what tells most first; the seconds are those of an H100."""
    ceiling = facts.matrix_product(world.device, scale.product, scale.products)
    attempts.record.add("bf16 matrix product", ceiling, "TFLOP/s", size=scale.product, repetitions=scale.products)
    write_random_tokens(directory / "data", scale.vocabulary, scale.length)
    runs = ModelRuns(attempts, world, ceiling * 1e12, directory)
    large = [scale.model("1.4B", objective) for objective in CONFIGS]
    measured = [
        attempts.run(f"training {model.name}", 60, partial(runs.measure, model, trace))
        for model, trace in zip(large, (directory / "step.json", None))
    ]
    beside = "plain loop beside x-transformers"
    attempts.run(f"AR {beside}", 40, partial(compare_training, "AR", scale.setting, attempts))
    attempts.run(f"NAR {beside}", 40, partial(compare_training, "NAR", scale.setting, attempts))
    for width in scale.widths:
        for objective in CONFIGS:
            model = scale.model(width, objective)
            attempts.run(f"training {model.name}", 30, partial(runs.measure, model))
    for model, there in zip(large, measured):
        if there and model.name in runs.larger:
            attempts.run(f"larger micro-batches, {model.name}", 60, partial(runs.measure_larger, model))
    model = scale.model("350M", "NAR")
    without = replace(model, name=f"{model.name} ZeRO 0", overrides=(*model.overrides, "training.zero_stage=0"))
    attempts.run(f"training {without.name}", 30, partial(runs.measure, without))


if __name__ == "__main__":
    sys.exit(main())
