"""Readers of data sets, one per file, and made scans."""
