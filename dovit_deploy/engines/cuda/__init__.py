"""GPU memory and one stream of work: what a runtime needs of CUDA, apart from any package that provides it."""
