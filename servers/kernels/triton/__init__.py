"""Kernels in Triton, for engines on a GPU; Triton's interpreter runs them on a CPU for tests."""
