"""A router in front of several servers: one address, every request sent on to the server that suits it."""
