"""Vidur's CSV traces (https://github.com/microsoft/vidur).

With times: ``arrived_at,num_prefill_tokens,num_decode_tokens``; lengths only:
``num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio``.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest

_TIME = "arrived_at"
_LENGTHS = ("num_prefill_tokens", "num_decode_tokens")


def _matches(head: Head) -> int:
    return head.explained((_TIME, *_LENGTHS)) if set(_LENGTHS) <= set(head.columns) else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    rows = cursor.rows()
    header = next(rows, [])
    prefill, decode = cursor.columns(header, _LENGTHS)
    time = cursor.columns(header, (_TIME,))[0] if _TIME in header else None
    for number, row in enumerate(rows):
        yield TraceRequest(
            id=str(number),
            arrival=None if time is None else cursor.time(row[time], _TIME, unit="s"),
            input_length=cursor.tokens(row[prefill], _LENGTHS[0]),
            output_length=cursor.tokens(row[decode], _LENGTHS[1]),
        )


FORMAT = Format(
    name="vidur",
    title="Vidur (CSV)",
    assumes="arrived_at is in seconds",
    matches=_matches,
    read=_read,
)
