"""One reader per public trace format."""
