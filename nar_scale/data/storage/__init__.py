"""Remote objects and the disk of a node: object stores, the cache of shards, prefetching, locks between processes."""
