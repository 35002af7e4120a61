"""Vision transformers for segmentation: DoViT, Segmenter, SETR."""
