"""Programs behind make: the demonstration and the probe's table."""
