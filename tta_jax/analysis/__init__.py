"""Analyse one pair of tasks."""
