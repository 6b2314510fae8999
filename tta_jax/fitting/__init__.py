"""Fit heads, class assignments and feature maps to pairs of tasks."""
