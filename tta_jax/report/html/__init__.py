"""Pages of one HTML file."""
