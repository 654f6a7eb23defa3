"""One request of a trace, and kvload's own JSONL format: one such object a line.

::

    {"id": "r1", "arrival": 0.25, "input_length": 1155, "output_length": 211}
    {"id": "r2", "arrival": 0.75, "messages": [{"role": "user", "content": "..."}], "max_tokens": 128,
     "expected": "42", "scorer": "numeric", "task": "sum"}

What to send stands in one of ``messages``, ``prompt`` and ``prompt_token_ids``. Where none is given, ``input_length``
says how long a prompt is to be made up (see ``schedule.prompts``); beside a text it only tells how long that
is. Unknown keys are kept in ``extra``.

Turns of a conversation share their ``session`` and count ``turn`` from 0. A turn is sent when the former has ended plus
its ``think_time``, and never before its own ``arrival`` where it has one. What a later turn gives is either new in that
turn, and the conversation so far, with the server's real answers, is put before it; or it is the whole prompt.
``continues`` says which; where it is absent, ``messages`` that hold an assistant's answer are whole, and so is an
``input_length`` beside an ``arrival`` or ``block_ids``, unless what the turn before was shows otherwise (see
:mod:`kvload.workloads.traces.conversations`).

Fields of the request itself (``temperature``, ``stop``, ``ignore_eos``, ``tools`` ...: see
:mod:`kvload.workloads.traces.request_fields`) stand in ``sampling`` or beside the others.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from kvload.errors import UsageError

ARRIVAL_DIGITS = 7
"""Arrivals are rounded to 100 ns, the finest clock of any format: two readers of the same requests then agree."""


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request as a trace describes it.

    Attributes:
        id: unique within the trace; pairs between runs are formed by it.
        arrival: seconds since the first request of the trace; None where the trace has no times.
        input_length: prompt length in tokens.
        output_length: answer length in tokens as recorded; the length to force in forced mode.
        max_tokens: cap on the answer; None leaves it to the replay's default.
        block_ids: ids of the prompt's blocks of ``block_size`` tokens; equal ids stand for equal blocks after equal
            prefixes.
        session, turn, think_time: turns of one conversation; a turn starts ``think_time`` seconds after the end of
            the former.
        expected, scorer, task: the right answer, how to score against it, and the kind of question.
        continues: whether a later turn holds only what is new in it; None where the trace does not say.
        model: the model that the row asks for; sent where the server serves it.
        sampling: request fields passed through (``temperature``, ``top_p``, ``seed``, ``stop`` ...).
        extra: whatever else the source had.
    """

    id: str
    arrival: float | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    input_length: int | None = None
    output_length: int | None = None
    max_tokens: int | None = None
    block_ids: list[int] | None = None
    block_size: int | None = None
    session: str | None = None
    turn: int | None = None
    think_time: float | None = None
    continues: bool | None = None
    expected: str | None = None
    scorer: str | None = None
    task: str | None = None
    model: str | None = None
    sampling: dict[str, Any] = {}
    extra: dict[str, Any] = {}


def shifted(request: TraceRequest, zero_s: float) -> TraceRequest:
    """The request with its arrival counted from ``zero_s``, rounded to 100 ns."""
    if request.arrival is None:
        return request
    arrival = round(request.arrival - zero_s, ARRIVAL_DIGITS)
    return request if arrival == request.arrival else msgspec.structs.replace(request, arrival=arrival)


def continues_conversation(request: TraceRequest) -> bool:
    """Whether a later turn holds only what is new in it, so that it needs the conversation before it to be sent."""
    if request.continues is not None:
        return request.continues
    if request.messages is not None:
        return not any(message.get("role") == "assistant" for message in request.messages)
    if request.prompt is not None or request.prompt_token_ids is not None:
        return True
    return not request.block_ids and request.arrival is None


def write_trace(requests: Iterable[TraceRequest], file: BinaryIO) -> int:
    """Write requests in kvload's JSONL, one by one, and return how many there were."""
    encoder = msgspec.json.Encoder()
    count = 0
    for request in requests:
        file.write(encoder.encode(request) + b"\n")
        count += 1
    return count


def write_trace_file(requests: Iterable[TraceRequest], path: Path) -> int:
    """Write requests to a file, and return how many there were.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        file = path.open("wb")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from error
    with file:
        return write_trace(requests, file)
