"""AdamW, Lion and Muon with their parameter groups, and the moving average of the weights."""
