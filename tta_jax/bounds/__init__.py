"""The chain of bounds, its certificate and intervals."""
