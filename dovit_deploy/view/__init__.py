"""How does one look at a bundle at work? A page on this machine: a frame, thresholds, and what comes of them."""
