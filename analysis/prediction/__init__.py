"""Step times: measured steps out of runs, the physical model fitted to them, and how far it errs."""
