"""TensorRT and TensorRT for RTX: engines are built ahead of time, kept in a cache, and run from there."""
