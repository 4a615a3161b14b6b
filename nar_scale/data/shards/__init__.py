"""Shards of a data set: what they hold, their index, and reading samples by number.

A shard is a tar in the layout of WebDataset. `shard_scan` finds its samples, `shard_index` writes where they lie into a
file beside it, `shard_reader` reads them, and `dataset_index` numbers the samples of many shards.
"""
