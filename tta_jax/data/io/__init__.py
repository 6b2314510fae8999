"""Read and write files of features."""
