"""What is done beside the steps: checkpoints, evaluation, samples, metrics and profiles."""
