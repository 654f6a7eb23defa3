"""What one run says: its summary, SLO attainment, capacity, and whether to trust it."""
