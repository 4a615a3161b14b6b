"""What a step costs on a kind of device: operations, memory traffic, communication, time, checkpoints and data."""
