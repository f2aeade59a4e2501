"""Measured speeds: `make bench`, or `python -m benchmarks`. Nothing here is a test."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
