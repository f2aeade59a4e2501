"""Measured speeds: `make bench`, or `python -m benchmarks`. Nothing here is a test."""
