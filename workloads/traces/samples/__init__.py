"""What a trace is called on the command line: a file, ``-`` for standard input, ``sample:NAME`` for one that ships."""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from kvload.errors import TraceError, UsageError

PREFIX = "sample:"

SAMPLE_TRACE = Path(__file__).resolve().parent / "demo.jsonl"
"""About 60 questions over 20 seconds that any chat model can be asked, with their right answers."""


def trace_path(name: str) -> Path:
    """The file that a name on the command line stands for: ``sample:demo``, ``-``, or a path.

    A trace is read more than once, so that what comes through a pipe is first written to a file, which goes when the
    process ends.

    Raises:
        UsageError: there is no such sample.
        TraceError: there is no such file, a pipe cannot be read, or there is no room for what comes through it.
    """
    if name == "-":
        return _spooled(sys.stdin.buffer, "standard input")
    shipped = {path.stem: path for path in SAMPLE_TRACE.parent.glob("*.jsonl")}
    if not name.startswith(PREFIX):
        path = Path(name)
        if not path.exists():
            hint = f"did you mean {PREFIX}{name}?" if name in shipped else None
            raise TraceError("there is no such file", where=name, hint=hint)
        if path.is_dir():
            raise TraceError("is a folder, where a trace is a file", where=name)
        if not path.is_fifo() and not path.is_char_device():
            return path
        try:
            with path.open("rb") as pipe:
                return _spooled(pipe, name)
        except OSError as error:
            raise TraceError(f"cannot be read: {error.strerror}", where=name) from error
    wanted = name.removeprefix(PREFIX)
    if wanted not in shipped:
        raise UsageError(f"no such sample trace: '{wanted}'", hint=f"shipped: {', '.join(sorted(shipped))}")
    return shipped[wanted]


def _spooled(pipe: BinaryIO, name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="kvload-trace-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "stdin"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(pipe, file, 1 << 20)
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", where=name) from error
    return path
