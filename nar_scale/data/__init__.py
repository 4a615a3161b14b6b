"""Tokenizers, shards, their index, the sample order and the loader."""

from nar_scale.data.batch import Batch
from nar_scale.data.classes import ClassReader
from nar_scale.data.digits import prepare_digits
from nar_scale.data.index import DatasetIndex
from nar_scale.data.info import DatasetInfo, SplitInfo
from nar_scale.data.loader import TokenStream, sequential_batches
from nar_scale.data.order import SampleOrder
from nar_scale.data.prepare import prepare
from nar_scale.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "ByteTokenizer",
    "ClassReader",
    "DatasetIndex",
    "DatasetInfo",
    "SampleOrder",
    "SplitInfo",
    "TokenStream",
    "Tokenizer",
    "load_tokenizer",
    "prepare",
    "prepare_digits",
    "sequential_batches",
]
