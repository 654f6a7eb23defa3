"""Everything that sends requests: trace readers, schedules, the streaming client, Locust users, the mock server."""

if __name__ != "kvload.workloads":
    raise ImportError("import kvload.workloads, not workloads: the bare name would load a second copy of the package")
