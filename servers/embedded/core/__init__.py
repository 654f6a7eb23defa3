"""The engine's core: sequences, the scheduler, the runner, sampling and text."""
