"""Predictions: step models from runs, loads served by the simulator, checks against other runs, and plans."""
