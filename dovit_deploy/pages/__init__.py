"""How do figures become a page that people look at? One HTML file that needs nothing else."""
