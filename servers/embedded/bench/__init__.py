"""Benchmarks of the embedded engine."""
