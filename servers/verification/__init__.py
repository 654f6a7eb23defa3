"""Whether a server's cache does what its method claims."""
