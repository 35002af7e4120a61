"""STViT-R on Swin, STViT on DeiT, and the plain Swin."""
