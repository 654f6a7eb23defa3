"""Routers from comparisons: reading what was compared, fitting, judging."""
