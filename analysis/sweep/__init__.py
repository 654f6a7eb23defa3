"""Several methods under rising load: the curve of each, what it carries within the limits, and how that compares."""
