"""The commands of `tta-jax`, one module each."""
