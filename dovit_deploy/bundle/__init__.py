"""The contract between the PyTorch side and the deployment side: spec, manifest, directory."""
