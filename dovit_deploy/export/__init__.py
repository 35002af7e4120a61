"""From a checkpoint to a checked bundle (needs PyTorch and ONNX)."""
