"""A server's life: starting, the registry of what runs, the keeper beside it, stopping, and why it died."""
