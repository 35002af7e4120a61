"""What does an NVIDIA GPU run, how fast, and does it agree? The entry is prove.py."""
