"""An archive of sources, computed in parts by several workers and merged into what a run of each would have written."""
