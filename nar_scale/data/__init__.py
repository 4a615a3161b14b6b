"""Tokenizers, shards, their index, the sample order and the loader."""

from nar_scale.data.inspection.summary import inspect
from nar_scale.data.inspection.verify import verify
from nar_scale.data.loading.batch import Batch
from nar_scale.data.loading.loader import TokenStream, sequential_batches
from nar_scale.data.loading.mixture import JoinedIndex, MixedOrder, Order, Stage, weights_by_temperature
from nar_scale.data.loading.order import SampleOrder
from nar_scale.data.loading.sequential import SequentialStream, find_sequential_shards
from nar_scale.data.preparation.pipeline import merge_units, plan_dataset, prepare, prepare_units
from nar_scale.data.preparation.tokenizer_training import train_tokenizer
from nar_scale.data.shards.build_index import index_shards
from nar_scale.data.shards.dataset_index import DatasetIndex
from nar_scale.data.shards.dataset_info import DatasetInfo, SplitInfo
from nar_scale.data.shards.sample_format import Sample, SampleFormat, SampleIndex
from nar_scale.data.storage.shard_cache import ShardCache, cache_bytes
from nar_scale.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer

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
    "prepare_units",
    "sequential_batches",
    "train_tokenizer",
    "verify",
    "weights_by_temperature",
]
