"""Traces that come with kvload, made by ``kvload traces sample``; the command line calls them ``sample:NAME``."""

from pathlib import Path

from kvload.errors import UsageError

PREFIX = "sample:"

SAMPLE_TRACE = Path(__file__).resolve().parent / "demo.jsonl"
"""About 60 questions over 20 seconds that any chat model can be asked, with their right answers."""


def trace_path(name: str) -> Path:
    """The file that a name on the command line stands for: ``sample:demo``, or a path.

    Raises:
        UsageError: there is no such sample.
    """
    if not name.startswith(PREFIX):
        return Path(name)
    wanted = name.removeprefix(PREFIX)
    shipped = {path.stem: path for path in SAMPLE_TRACE.parent.glob("*.jsonl")}
    if wanted not in shipped:
        raise UsageError(f"no such sample trace: '{wanted}'", hint=f"shipped: {', '.join(sorted(shipped))}")
    return shipped[wanted]
