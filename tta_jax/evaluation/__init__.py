"""Compare scores with the truth: rank statistics, score tables, regression."""
