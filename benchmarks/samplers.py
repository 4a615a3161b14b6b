"""How far each sampler is from the model's distribution, and how many calls it takes.

python -m benchmarks.samplers [--rows N] [--length N]

The network is an oracle: a table of the exact conditionals of a random joint distribution of 4 tokens with 3 values.
Printed is the total variation between the joint and what is drawn, beside that of as many draws from the joint itself.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from nar_scale.masking import Noise
from tests.decoding.tables import decode, oracle, outcomes, some_joint

ANSWERS = 3
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *(("random", {"steps": steps}) for steps in (None, 2, 1)),
    *(("first_hitting", {"steps": steps}) for steps in (None, 4, 2, 1)),
    *(("confidence", {"steps": steps}) for steps in (None, 2)),
    *(("entropy", {"steps": steps}) for steps in (None, 2)),
    *(("margin", {"steps": steps}) for steps in (None, 2)),
    *(("threshold", {"threshold": threshold}) for threshold in (0.9, 0.7, 0.5)),
    *(("factor", {"factor": factor}) for factor in (0.5, 1.0, 1.5)),
    *(("entropy_bound", {"entropy_bound": bound}) for bound in (0.1, 0.5, 1.0, 2.0)),
    ("remask", {}),
    ("remask", {"remask_rule": "rescale", "remask_amount": 0.5}),
    ("wino", {}),
    ("wino", {"reveal_threshold": 0.4, "keep_threshold": 0.4}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="sequences that are drawn")
    parser.add_argument("--length", type=int, default=4, help="tokens of a sequence, at most 4")
    arguments = parser.parse_args()
    joint = some_joint(arguments.length, ANSWERS)
    net, rows = oracle(joint), arguments.rows
    noise = Noise.of_requests(0, torch.arange(rows))
    drawn = torch.multinomial(joint.flatten(), rows, replacement=True, generator=torch.Generator().manual_seed(0))
    print("| sampler | settings | calls | total variation |\n|---|---|---|---|")
    print(f"| the joint itself | | | {total_variation(drawn, joint):.4f} |")
    for sampler, options in SETTINGS:
        masked = torch.full((rows, arguments.length), ANSWERS)
        result, _ = decode(masked, net, ANSWERS, sampler, noise=noise, **options)
        shown = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
        calls = float(result.network_calls.double().mean())
        distance = total_variation(outcomes(result.tokens, ANSWERS), joint)
        print(f"| `{sampler}` | {shown} | {calls:.2f} | {distance:.4f} |")


def total_variation(drawn: Tensor, joint: Tensor) -> float:
    """Half the sum of differences in probability between the cells drawn, int64 `[rows]`, and the joint."""
    found = drawn.bincount(minlength=joint.numel()).double() / len(drawn)
    return float((found - joint.flatten()).abs().sum() / 2)


if __name__ == "__main__":
    main()
