"""Files and checkpoints to dense tensors of PyTorch, on a CPU or a GPU."""
