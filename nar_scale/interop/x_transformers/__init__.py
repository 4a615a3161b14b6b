"""From and to x-transformers: its modules by their names, made of ours, and nets from its weights and back.

One line changes: `from nar_scale.interop.x_transformers import TransformerWrapper, Decoder, AutoregressiveWrapper`.
"""

from nar_scale.interop.x_transformers.conversion import (
    XTransformersExport,
    export_x_transformers,
    from_x_transformers,
    to_x_transformers,
)
from nar_scale.interop.x_transformers.modules import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper
from nar_scale.objectives import NonAutoregressiveWrapper

__all__ = [
    "AutoregressiveWrapper",
    "Decoder",
    "Encoder",
    "NonAutoregressiveWrapper",
    "TransformerWrapper",
    "XTransformersExport",
    "export_x_transformers",
    "from_x_transformers",
    "to_x_transformers",
]
