"""Scores of answers, and the answers that got worse."""
