"""The section `optimizer`: how weights follow from gradients, in three kinds."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from nar_scale.config.sections.section import FixedOnResume, Fraction, Kind, reads_all_kinds


class _OptimizerConfig(Kind):
    """What all optimizers have."""

    learning_rate: PositiveFloat = Field(
        description="Peak learning rate of AdamW or Lion; with kind `muon` that of the weights AdamW updates.",
    )
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = Field(
        default=(0.9, 0.95),
        description="Decay rates of the averages of the gradient and of its square; for Lion, weights of the average "
        "in the step and in the next average.",
    )
    weight_decay: NonNegativeFloat = Field(
        default=0.1,
        description="Decoupled weight decay of matrices; vectors (norms, biases) and embeddings are not decayed.",
    )
    gradient_clipping: NonNegativeFloat = Field(
        default=1.0,
        description="Largest global 2-norm of the gradient, to which larger ones are scaled down; 0 for no limit.",
    )


class _WithAdamWConfig(_OptimizerConfig):
    """What the optimizers have that update all or some weights by AdamW."""

    eps: PositiveFloat = Field(
        default=1e-8,
        description="Added to the root of AdamW's second moment.",
    )


class AdamWConfig(_WithAdamWConfig):
    """AdamW for all weights."""

    kind: Annotated[Literal["adamw"], FixedOnResume()] = Field(
        default="adamw",
        description="Adam with decoupled weight decay (arXiv:1711.05101).",
    )


class LionConfig(_OptimizerConfig):
    """Lion for all weights."""

    kind: Annotated[Literal["lion"], FixedOnResume()] = Field(
        description="Steps by the sign of an averaged gradient, with half of AdamW's state (arXiv:2302.06675).",
    )


class MuonConfig(_WithAdamWConfig):
    """Muon for the matrices of the blocks, AdamW for all other weights."""

    kind: Annotated[Literal["muon"], FixedOnResume()] = Field(
        description="Orthogonal steps for the matrices of the blocks (https://kellerjordan.github.io/posts/muon), "
        "AdamW for all other weights.",
    )
    muon_learning_rate: PositiveFloat = Field(
        default=0.02,
        description="Peak spectral norm of a step of a matrix; times sqrt(rows / columns) for tall ones.",
    )
    muon_momentum: Fraction = Field(
        default=0.95,
        description="Decay rate of the average of gradients that Muon's steps are made from.",
    )


_Kinds = AdamWConfig | LionConfig | MuonConfig

OptimizerConfig = Annotated[_Kinds, Field(discriminator="kind"), reads_all_kinds(_Kinds, frozenset({"eps"}))]
"""How weights follow from gradients."""
