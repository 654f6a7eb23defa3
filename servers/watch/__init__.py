"""Looking at running servers from outside: HTTP, metrics, discovery."""
