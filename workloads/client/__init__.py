"""The streaming client: from the socket to a decoded answer."""
