"""A fast mock server with known timing: for tests, and to calibrate the client."""
