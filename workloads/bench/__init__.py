"""Benchmarks of the client and the trace readers."""
