"""One file per runtime; none imports torch."""
