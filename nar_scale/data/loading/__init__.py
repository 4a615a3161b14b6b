"""The order of samples, and the micro-batches that are made of them.

`order` and `mixture` say which sample stands at a position of the stream, `collate` reads samples into a `batch`, and
`loader` is the stream of a rank. `sequential` is the inexact stream for shards without random access.
"""
