"""Labelled images: which data sets are understood, and how their samples and parts of them are read."""
