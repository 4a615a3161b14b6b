"""MAUVE, the distance of generated text from human text in the states of a language model (the extra `mauve`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nar_scale.errors import UserError
from nar_scale.evaluation import Reference


def measure_mauve(
    reference: Reference, generated: Sequence[Sequence[int]], human: Sequence[Sequence[int]], seed: int = 0
) -> float:
    """MAUVE of generated text against human text (arXiv:2102.01454), in (0, 1]; 1 for the same distribution.

    States are quantized into a tenth as many clusters as there are texts: with fewer than some thousand texts of each
    kind, only values of as many texts can be compared.

    Args:
        reference: a left-to-right model; values under different ones cannot be compared.
        generated: token ids, as `reference.join` returns them.
        human: as many of the other kind.
        seed: of the clustering.

    Raises:
        UserError: the optional package is not installed, or the reference model does not read left to right.
    """
    mauve = import_mauve()
    features = reference.features(generated), reference.features(human)
    result = mauve.compute_mauve(p_features=features[0], q_features=features[1], seed=seed, verbose=False)
    return float(result.mauve)


def import_mauve() -> Any:
    """The module `mauve`.

    Raises:
        UserError: the optional package is not installed.
    """
    try:
        import mauve
    except ImportError as error:
        raise UserError(f"MAUVE needs an optional package ({error.name}): pip install 'nar_scale[mauve]'") from error
    return mauve
