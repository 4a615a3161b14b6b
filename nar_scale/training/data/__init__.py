"""Opening the data sets of a run, for training and for validation."""
