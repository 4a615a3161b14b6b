import torch

# The tensors of tests are small: on a busy machine threads that wait for each other cost ten times what they save.
torch.set_num_threads(1)
