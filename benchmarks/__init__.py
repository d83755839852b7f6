"""Benchmarks: scripts that measure, in one run and side by side, this package and its peers."""
