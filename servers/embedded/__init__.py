"""The embedded engine: an OpenAI-compatible server over a paged, compressed KV cache, small enough to read."""
