"""Tokenizers, shards, their index, the sample order and the loader."""

from nar_scale.data.batch import Batch
from nar_scale.data.digits import prepare_digits
from nar_scale.data.index import DatasetIndex
from nar_scale.data.indexing import index_shards
from nar_scale.data.info import DatasetInfo, SplitInfo
from nar_scale.data.inspection import inspect
from nar_scale.data.loader import TokenStream, sequential_batches
from nar_scale.data.mixture import JoinedIndex, MixedOrder, Order, Stage, weights_by_temperature
from nar_scale.data.order import SampleOrder
from nar_scale.data.prepare import merge_units, plan_dataset, prepare, prepare_units
from nar_scale.data.sample import Sample, SampleFormat, SampleIndex
from nar_scale.data.sequential import SequentialStream, find_sequential_shards
from nar_scale.data.shard_cache import ShardCache, cache_bytes
from nar_scale.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from nar_scale.data.tokenizer_training import train_tokenizer
from nar_scale.data.verify import verify

__all__ = [
    "Batch",
    "ByteTokenizer",
    "DatasetIndex",
    "DatasetInfo",
    "JoinedIndex",
    "MixedOrder",
    "Order",
    "Sample",
    "SampleFormat",
    "SampleIndex",
    "SampleOrder",
    "SequentialStream",
    "ShardCache",
    "SplitInfo",
    "Stage",
    "TokenStream",
    "Tokenizer",
    "cache_bytes",
    "find_sequential_shards",
    "index_shards",
    "inspect",
    "load_tokenizer",
    "merge_units",
    "plan_dataset",
    "prepare",
    "prepare_digits",
    "prepare_units",
    "sequential_batches",
    "train_tokenizer",
    "verify",
    "weights_by_temperature",
]
