"""Extract features with frozen encoders, resumably."""
