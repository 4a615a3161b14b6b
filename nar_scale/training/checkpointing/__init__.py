"""Writing and reading training checkpoints, and the rules of resuming from them."""
