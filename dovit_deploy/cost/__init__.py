"""What a network costs: multiply-adds from an architecture and token counts, one file a family."""
