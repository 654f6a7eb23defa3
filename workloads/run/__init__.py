"""One run: sending planned requests, recording what came back, and completing the run folder."""
