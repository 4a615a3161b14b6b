"""What a likelihood was estimated with, in a line that stands beside the number."""

from __future__ import annotations

from nar_scale.objectives import BlockDiffusionWrapper, NonAutoregressiveWrapper, Objective

_MASKING = {"exact": "exact-count masking", "bernoulli": "Bernoulli masking"}


def estimator_of(objective: Objective, seed: int) -> str:
    """Name the estimator of `evaluate_likelihood`.

    Args:
        objective: the model.
        seed: of the masks.

    Returns:
        For example "exact NLL, left to right" or "NELBO, exact-count masking, stratified, seed 20240611".
    """
    if objective.likelihood_kind == "exact":
        return "exact NLL, left to right"
    parts = ["NELBO" if objective.likelihood_kind == "bound" else "mean cross-entropy of masked tokens"]
    if isinstance(objective, BlockDiffusionWrapper):
        parts.append(f"blocks of {objective.block_size} tokens")
    if isinstance(objective, NonAutoregressiveWrapper):
        parts.append(_MASKING[objective.masking])
    return ", ".join([*parts, "stratified", f"seed {seed}"])
