"""Remote object stores, the cache of a node, prefetching and file locks."""
