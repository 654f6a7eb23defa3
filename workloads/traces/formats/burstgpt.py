"""BurstGPT (https://github.com/HPMLL/BurstGPT): CSV.

Version 1 counts whole seconds from the first day; versions 2 and 3 have float seconds that start anywhere, and the
columns ``Session ID`` (of conversation rows only) and ``Elapsed time``. A row whose response has 0 tokens is a request
that failed.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")
_SESSION = "Session ID"


def _matches(head: Head) -> int:
    return head.explained((*_COLUMNS, _SESSION)) if set(_COLUMNS) <= set(head.columns) else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    rows = cursor.rows()
    header = next(rows, [])
    time, model, prompt, response, log = cursor.columns(header, _COLUMNS)
    session_column = cursor.columns(header, (_SESSION,))[0] if _SESSION in header else None
    turns = TurnCounter()
    for number, row in enumerate(rows):
        session, turn = turns.count(cursor, None if session_column is None else row[session_column].strip(), _SESSION)
        output_length = cursor.tokens(row[response], "Response tokens")
        extra: dict[str, object] = {"model": row[model], "log_type": row[log]}
        if output_length == 0:
            extra["failed"] = True
        yield TraceRequest(
            id=str(number),
            arrival=cursor.time(row[time], "Timestamp", unit="s"),
            input_length=cursor.tokens(row[prompt], "Request tokens"),
            output_length=output_length,
            session=session,
            turn=turn,
            extra=extra,
        )


FORMAT = Format(
    name="burstgpt",
    title="BurstGPT v1, v2, v3 (CSV)",
    assumes="times are in seconds; request tokens of a session's later rows hold the whole conversation; a response of "
    "0 tokens marks a failed request",
    matches=_matches,
    read=_read,
)
