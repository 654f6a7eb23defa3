"""Single requests of a trace, by id, as a trace of their own."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from kvload.errors import TraceError
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

NEGATIVE = "negative"
"""Key in ``extra`` under which a picked request says why it was picked."""


def pick(read: Callable[[], Iterator[TraceRequest]], wanted: Mapping[str, Mapping[str, Any]]) -> Iterator[TraceRequest]:
    """The requests of the wanted ids in their order, with what is said about each; their arrivals stay as they are.

    Turns that a wanted one is built upon come along, unmarked. The trace is read twice.

    Args:
        read: starts to read the trace.
        wanted: for each id, what to keep in its ``extra`` (methods, theta, answers).

    Raises:
        TraceError: the trace has none of an id.
    """
    sessions: dict[str, int] = {}
    missing = set(wanted)
    for position, request in enumerate(read()):
        if request.id in wanted:
            missing.discard(request.id)
            if request.session is not None and request.turn != 0 and continues_conversation(request):
                sessions[request.session] = position
    if missing:
        raise TraceError(f"the trace has no request '{min(missing)}'", hint="are the scores those of this trace?")
    for position, request in enumerate(read()):
        if request.id in wanted:
            yield msgspec.structs.replace(request, extra={**request.extra, NEGATIVE: dict(wanted[request.id])})
        elif request.session is not None and position < sessions.get(request.session, -1):
            yield request
