"""Renderers of one report object: terminal, HTML, JSON."""
