"""Records as columns, their latencies and outcomes, and the pairs of two runs."""
