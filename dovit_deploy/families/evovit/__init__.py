"""Evo-ViT on DeiT and on LeViT, and the two without it."""
