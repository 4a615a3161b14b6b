"""Measuring a run and writing its metrics to the terminal, to TensorBoard and to `metrics.jsonl`."""
