"""The networks in PyTorch, and checkpoints understood."""
