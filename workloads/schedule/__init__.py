"""Turning a trace into planned requests: when each is due, with which tokens and limits."""
