"""Figures of analyses, scans and evaluations."""
