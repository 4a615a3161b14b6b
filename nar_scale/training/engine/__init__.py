"""The DeepSpeed engine: how it is built, where each ZeRO stage keeps weights and optimizer state, and what it skips."""
