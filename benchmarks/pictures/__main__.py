"""Draw the pictures of the documentation.

python -m benchmarks.pictures --checkpoint exported/quickstart_nar --digits exported/digits_nar \
    --run runs/quickstart_nar --taken-over runs/taken_over --data data/python_stdlib

All are of `make demo` and `make demo CONFIG=configs/digits_nar.yaml`, but for the run that was taken over:

python launcher/train.py --config configs/quickstart_nar.yaml training.run_directory=runs/taken_over \
    --resume runs/quickstart_nar/checkpoints/step-000000400
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.pictures import charts
from benchmarks.pictures.unmasking import write_unmasking

FOLDER = charts.REPOSITORY / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "digits", "run", "taken-over", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="DIR", help="default: docs/images")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    write_unmasking(options.checkpoint, options.digits, options.output)
    figures = {
        "masks": charts.draw_masks(options.run / "evaluation.json"),
        "checkpoints": charts.draw_checkpoints(options.run / "metrics.jsonl", options.taken_over / "metrics.jsonl"),
        "stream": charts.draw_stream(options.data),
        "decoding": charts.draw_decoding(),
        "clusters": charts.draw_clusters(),
    }
    for name, figure in figures.items():
        figure.savefig(options.output / f"{name}.png", dpi=130)


if __name__ == "__main__":
    main()
