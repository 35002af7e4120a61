"""What the networks are: their specs and cost as data, their layers in PyTorch, a folder for each family."""
