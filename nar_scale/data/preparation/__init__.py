"""From a corpus to published shards."""
