"""Training: a folder of images and labels in, a checkpoint out."""
