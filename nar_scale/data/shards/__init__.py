"""Shards of a data set: what they hold, their index, and reading samples by number."""
