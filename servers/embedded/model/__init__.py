"""The transformer as the engine runs it: loading, attention, what is supported."""
