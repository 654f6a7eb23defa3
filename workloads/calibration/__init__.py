"""What the client itself costs, measured against the mock server."""
