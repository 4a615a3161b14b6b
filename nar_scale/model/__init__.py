"""The transformer: attention, feed-forward, positions, key/value cache, `Encoder`/`Decoder`, `TransformerWrapper`."""

from nar_scale.model.head import Head
from nar_scale.model.kv_cache import KeyValueCache
from nar_scale.model.sequence_parallel import WHOLE, SequenceParallelContext
from nar_scale.model.stack import AttentionLayers, Decoder, Encoder
from nar_scale.model.transformer import TransformerOutput, TransformerWrapper

__all__ = [
    "WHOLE",
    "AttentionLayers",
    "Decoder",
    "Encoder",
    "Head",
    "KeyValueCache",
    "SequenceParallelContext",
    "TransformerOutput",
    "TransformerWrapper",
]
