"""dovit-deploy: dynamic-token vision transformers from checkpoint to fast, exact, measured segmentation."""

__version__ = "0.1.0"
