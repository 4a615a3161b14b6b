"""What the stages of training and generation speed are made of: attempts, clocks, runs of the trainer, peers."""
