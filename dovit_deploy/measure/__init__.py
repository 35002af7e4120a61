"""Questions about a bundle, a file or this machine, answered with numbers; none of it imports torch."""
