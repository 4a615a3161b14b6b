"""Train and use autoregressive and non-autoregressive token transformers.

>>> from nar_scale import TransformerWrapper, Encoder, NonAutoregressiveWrapper
"""

from nar_scale.checkpoint import load_consolidated as load
from nar_scale.interop import from_x_transformers, to_x_transformers
from nar_scale.model import Decoder, Encoder, TransformerWrapper
from nar_scale.objectives import AutoregressiveWrapper, BlockDiffusionWrapper, HybridWrapper, NonAutoregressiveWrapper

__all__ = [
    "AutoregressiveWrapper",
    "BlockDiffusionWrapper",
    "Decoder",
    "Encoder",
    "HybridWrapper",
    "NonAutoregressiveWrapper",
    "TransformerWrapper",
    "from_x_transformers",
    "load",
    "to_x_transformers",
]
