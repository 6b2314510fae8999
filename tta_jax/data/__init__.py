"""Sources of features: files, the demo's digits, the paper's small encoder."""
