"""Everything that answers requests: the launcher, one adapter per engine, and the embedded engine."""

if __name__ != "kvload.servers":
    raise ImportError("import kvload.servers, not servers: the bare name would load a second copy of the package")
