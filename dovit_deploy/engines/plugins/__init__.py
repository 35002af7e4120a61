"""The token operators as TensorRT plugins: the CUDA kernels, and the classes that TensorRT calls."""
