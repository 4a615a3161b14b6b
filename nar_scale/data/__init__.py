"""Data sets of token sequences: from a corpus to shards, and from shards to the micro-batches of a rank.

A sub-package imports only from those on lower floors; `parallel` and `tokenizers` are below all of them, and
`sequential`, the other way to read, without index and order, is above:

3  preparation   from a corpus to published shards        loading   sample order, mixture, micro-batches
   inspection    summary and verification
2  shards        what a shard holds, its index, reading samples by number
1  formats       documents from files of all kinds        storage   object stores, the cache of a node, locks
"""

from nar_scale.data.inspection.summary import inspect
from nar_scale.data.inspection.verify import verify
from nar_scale.data.loading.batch import Batch
from nar_scale.data.loading.concatenated_index import ConcatenatedIndex
from nar_scale.data.loading.loader import TokenStream, sequential_batches
from nar_scale.data.loading.mixture import MixedOrder, Order, Stage, weights_by_temperature
from nar_scale.data.loading.sample_order import SampleOrder
from nar_scale.data.preparation.merge import merge_work_items
from nar_scale.data.preparation.pipeline import plan_dataset, prepare, prepare_work_items
from nar_scale.data.preparation.tokenizer_training import train_tokenizer
from nar_scale.data.sequential import SequentialStream, find_sequential_shards
from nar_scale.data.shards.build_index import index_shards
from nar_scale.data.shards.dataset_index import DatasetIndex
from nar_scale.data.shards.dataset_info import DatasetInfo, SplitInfo
from nar_scale.data.shards.sample_format import Sample, SampleFormat, SampleIndex
from nar_scale.data.storage.shard_cache import ShardCache, cache_bytes
from nar_scale.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "ByteTokenizer",
    "ConcatenatedIndex",
    "DatasetIndex",
    "DatasetInfo",
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
    "merge_work_items",
    "plan_dataset",
    "prepare",
    "prepare_work_items",
    "sequential_batches",
    "train_tokenizer",
    "verify",
    "weights_by_temperature",
]
