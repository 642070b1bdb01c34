"""Checks of maps: what puts a map to the test, and what came of it in words."""
