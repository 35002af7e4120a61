"""Choosing a model and judging it on different recordings: what is held out, what is frozen, and who may look when."""
