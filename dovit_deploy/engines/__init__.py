"""How does one runtime load and run one graph? One file or folder per runtime; none imports PyTorch."""
