"""Whole experiments, one per file."""
