"""The pictures of the documentation, drawn from our own models, runs and results: `python -m benchmarks.pictures`."""
