"""Pixels to pixels: session, transforms, predictor, sources, video, overlay."""
