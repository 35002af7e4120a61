"""How does NVIDIA Triton serve a bundle? Its configuration, the files of a model, and the repository they lie in."""
