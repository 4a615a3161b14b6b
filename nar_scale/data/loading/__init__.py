"""The order of samples, and the micro-batches that are made of them.

`order` and `mixture` say which sample stands at a position of the stream, `collate` reads samples into a `batch`, and
`loader` is the stream of a rank. `tar_stream` reads a tar from start to end, for `nar_scale.data.sequential`.
"""
