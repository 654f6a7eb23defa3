"""Everything that turns records into answers: statistics, pairs, quality and reports."""

if __name__ != "kvload.analysis":
    raise ImportError("import kvload.analysis, not analysis: the bare name would load a second copy of the package")
