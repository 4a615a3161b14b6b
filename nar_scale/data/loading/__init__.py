"""The order of samples, and the batches that are made of them."""
