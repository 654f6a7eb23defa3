"""Renderers of reports and comparisons: terminal, JSON, CSV and HTML."""
