"""What a configuration costs on a number of devices, computed without them."""
