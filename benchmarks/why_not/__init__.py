"""Why not just a smaller image, fewer layers or merged tokens? `compare.py` measures; the rest are its parts."""
