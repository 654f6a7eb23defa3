"""From the bytes of one answer and their arrival times to what was answered and when, after the stream has ended."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvload.records import GOOD_ENDS, Status
from kvload.rundir import CHUNK_DTYPE
from kvload.workloads.client.counting import Source, cached_of_prompt, count_tokens
from kvload.workloads.client.events import (
    MAX_COUNT,
    Delta,
    ToolFunction,
    error_text,
    mended,
    server_times,
)
from kvload.workloads.client.fast import read_wire, split_body
from kvload.workloads.client.raw import RawStream
from kvload.workloads.client.sse import Reading
from kvload.workloads.clock import TIMESPEC

_ABORTS = frozenset({"abort", "aborted", "cancel", "cancelled", "canceled", "timeout", "preempted"})
_ERRORS = frozenset({"error", "failed", "failure", "internal_error", "server_error"})
_TICKS_US = (1, 10, 100, 1000)
_BROKE_OFF = frozenset({"truncated", "reset", "timeout", "cut", "malformed"})
"""How a transport may end after ``[DONE]`` without making the answer any less whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome; times are monotonic nanoseconds, fields as in :class:`kvload.records.RequestRecord`.

    Attributes:
        chunks: ``CHUNK_DTYPE`` rows, one for each token-carrying chunk.
        merged_reads: token-carrying chunks that came in one read with the chunk before them.
        server_name: the server that answered, where a router on the way names it.
    """

    status: Status
    cause: str | None
    error: str | None
    http_status: int | None
    clock: Literal["kernel", "user"]
    t_send_ns: int | None
    t_end_ns: int
    t_headers_ns: int | None = None
    t_first_ns: int | None = None
    t_answer_ns: int | None = None
    t_last_ns: int | None = None
    chunks: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, CHUNK_DTYPE))
    chunk_tick_us: int = 1
    text: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, str]] | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    cached_doubt: str | None = None
    output_tokens: int | None = None
    output_tokens_source: Source | None = None
    first_chunk_tokens: int | None = None
    end_tokens: int = 0
    reasoning_tokens: int | None = None
    count_doubt: str | None = None
    unproven_tokens: int = 0
    in_bursts: bool = False
    damaged: bool = False
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    retries: int = 0
    merged_reads: int = 0
    server_name: str | None = None


def parse_answer(raw: RawStream, max_tokens: int | None = None) -> Answer:
    """Take one answer apart. Never raises for anything a server may send: what is wrong becomes status and cause.

    Args:
        max_tokens: the longest answer that was asked for, in tokens; None where no limit was sent.
    """
    arrivals, clock = _arrivals(raw)
    pieces = raw.pieces
    wire = b"".join(pieces)
    status, cause, error = raw.status, raw.cause, raw.error
    base: dict[str, Any] = {
        "http_status": raw.head.status if raw.head else None,
        "clock": clock,
        "t_send_ns": raw.t_send_ns,
        "t_end_ns": int(arrivals[-1]) if raw.complete and len(arrivals) else raw.t_end_ns,
        "t_headers_ns": int(arrivals[0]) if len(arrivals) else None,
        "retries": raw.retries,
        "server_name": raw.head.server if raw.head else None,
    }
    if raw.head is None:
        return Answer(status=status, cause=cause, error=error, **base)
    if raw.head.status != 200:
        if status == "ok":
            body, _, _ = split_body(wire, raw.head, raw.body_start)
            status = "refused" if 400 <= raw.head.status < 500 else "failed"
            cause, error = f"http_{raw.head.status}", error_text(body)
        return Answer(status=status, cause=cause, error=error, **base)
    piece_ends = np.fromiter(map(len, pieces), np.int64, len(pieces)).cumsum()
    found = read_wire(wire, raw.head, raw.body_start, raw.complete)
    reading, broken = found.reading, found.broken
    # a read holds the byte at a position if it ends behind it
    rows = piece_ends.searchsorted(reading.ends, side="right")
    rows = np.minimum(rows, max(len(arrivals) - 1, 0))
    times = arrivals[rows] if len(rows) else np.empty(0, np.int64)
    content = _content(reading, times, rows, raw.t_send_ns or raw.t_start_ns, max_tokens)
    if reading.done and cause in _BROKE_OFF:
        # [DONE] is the end, whatever became of the connection afterwards
        status, cause, error, broken = "ok", None, None, None
        base["t_end_ns"] = int(arrivals[-1])
    failed = _failure(reading, content, broken=broken, complete=raw.complete or reading.done)
    # a connection closed over a broken framing broke off, but that is not what was wrong
    if failed is not None and (status == "ok" or (broken is not None and cause == "truncated")):
        status, cause, error = "failed", failed[0], failed[1]
    if cause == "timeout" and content["t_last_ns"] is not None:
        # tokens had come, then nothing for more than half of all the time it had
        quiet_ns = raw.t_end_ns - content["t_last_ns"]
        cause = "stall" if quiet_ns > (raw.t_end_ns - (raw.t_send_ns or raw.t_start_ns)) / 2 else "timeout"
    return Answer(status=status, cause=cause, error=error, **base, **content)


def _arrivals(raw: RawStream) -> tuple[npt.NDArray[np.int64], Literal["kernel", "user"]]:
    """Arrival of each piece in monotonic nanoseconds, and whose clock it is."""
    stamps = raw.stamps
    joined = b""
    if raw.tie_offset_ns is not None and None not in stamps:
        joined = b"".join(stamps)  # type: ignore[arg-type]
    if raw.tie_offset_ns is None or not joined or len(joined) != TIMESPEC.size * len(stamps):
        return np.array(raw.seen_ns, np.int64), "user"
    fields = np.frombuffer(joined, np.int64).reshape(-1, 2)
    kernel = fields[:, 0] * 1_000_000_000 + fields[:, 1] - raw.tie_offset_ns
    return kernel, "kernel"


def _content(
    reading: Reading,
    times: npt.NDArray[np.int64],
    reads: npt.NDArray[np.int64],
    t_send_ns: int,
    max_tokens: int | None,
) -> dict[str, Any]:
    """Tokens, text and the server's own figures, from the events, their arrival times and the reads they came in."""
    counted = count_tokens(reading, max_tokens)
    said = _said(reading)
    carrying = np.flatnonzero(counted.by_event)
    counts = counted.by_event[carrying]
    at = times[carrying]
    merged = int(np.count_nonzero(np.diff(reads[carrying]) == 0))
    chunks, tick_us = _chunk_rows(at - t_send_ns, counts)
    answer_at = said.first_answer
    prompt_tokens = said.prompt_tokens
    prompt_tokens = prompt_tokens if prompt_tokens is not None and 0 <= prompt_tokens <= MAX_COUNT else None
    cached_tokens, cached_doubt = cached_of_prompt(said.cached_tokens, prompt_tokens)
    return {
        "t_first_ns": int(at[0]) if len(at) else None,
        "t_answer_ns": int(times[answer_at]) if answer_at is not None and len(at) else None,
        "t_last_ns": int(at[-1]) if len(at) else None,
        "chunks": chunks,
        "chunk_tick_us": tick_us,
        # what came in one read with the first token has no time of its own
        "first_chunk_tokens": int(counts[reads[carrying] == reads[carrying[0]]].sum()) if len(at) else None,
        "text": said.text if reading.ends.size else None,
        "reasoning": said.reasoning or None,
        "tool_calls": said.tool_calls or None,
        "token_ids": said.token_ids or None,
        "finish_reason": said.finish_reason,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "cached_doubt": cached_doubt,
        "output_tokens": counted.total,
        "output_tokens_source": counted.source,
        "end_tokens": counted.end_tokens,
        "reasoning_tokens": counted.thought,
        "count_doubt": counted.doubt,
        "unproven_tokens": counted.unproven,
        # of the gaps between chunks half are the work of whoever gathered them on the way
        "in_bursts": len(at) > 1 and 2 * merged >= len(at) - 1,
        "damaged": said.damaged,
        "merged_reads": merged,
        **server_times(said.metrics),
    }


def _chunk_rows(since_ns: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.void], int]:
    """Rows of the chunk file, and the unit of their times in microseconds: 32 bits of them last for 71 minutes."""
    longest_us = int(since_ns.max(initial=0)) // 1000 + 1
    tick_us = next((tick for tick in _TICKS_US if longest_us // tick < 0xFFFFFFFF), _TICKS_US[-1])
    rows = np.empty(len(since_ns), CHUNK_DTYPE)
    rows["us"] = np.clip((since_ns + 500 * tick_us) // (1000 * tick_us), 0, 0xFFFFFFFF)
    rows["tokens"] = np.minimum(counts, 0xFFFF)
    return rows, tick_us


@dataclass(slots=True)
class _Said:
    """What an answer says: its texts, and what stands beside them.

    Attributes:
        first_answer: number of the first event that holds something of the answer itself, as opposed to reasoning.
        damaged: some of the text is lost: it was no UTF-8.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    first_answer: int | None = None
    damaged: bool = False

    @property
    def ended_badly(self) -> bool:
        """A reason to stop that is no good one was given: none that follows makes it good."""
        return self.finish_reason is not None and self.finish_reason not in GOOD_ENDS


def _said(reading: Reading) -> _Said:
    """Put together what the chunks say."""
    said = _Said()
    texts: list[str] = []
    thoughts: list[str] = []
    calls = _ToolCalls()
    for number, event in enumerate(reading.events):
        if number == reading.run_at:
            texts += reading.run
        if event.usage is not None and event.usage.prompt_tokens is not None:
            said.prompt_tokens = event.usage.prompt_tokens
        if event.usage is not None and event.usage.cached_tokens is not None:
            said.cached_tokens = event.usage.cached_tokens
        if event.metrics:
            said.metrics = event.metrics
        if not event.choices:
            continue
        choice = event.choices[0]
        if choice.finish_reason and choice.finish_reason != "null" and not said.ended_badly:
            said.finish_reason = choice.finish_reason
        if choice.token_ids:
            said.token_ids += choice.token_ids
        if said.first_answer is None and (choice.text or choice.answers):
            said.first_answer = number + (len(reading.run) if number >= reading.run_at else 0)
        if choice.text:
            texts.append(choice.text)
        added = choice.delta or choice.message
        if added is not None:
            texts += [part for part in (added.content, added.refusal) if part and not choice.text]
            thoughts += [added.thought] if added.thought else []
            calls.add(added)
    if reading.run_at == len(reading.events):
        texts += reading.run
    if reading.run and (said.first_answer is None or said.first_answer >= reading.run_at):
        said.first_answer = reading.run_at
    said.text, damaged_text = mended("".join(texts))
    said.reasoning, damaged_thought = mended("".join(thoughts))
    said.tool_calls = calls.whole()
    said.damaged = damaged_text or damaged_thought
    if said.token_ids and not 0 <= min(said.token_ids) <= max(said.token_ids) <= MAX_COUNT:
        said.token_ids, said.damaged = [], True
    if said.finish_reason is not None:
        said.finish_reason = mended(said.finish_reason)[0]
    return said


class _ToolCalls:
    """Tool calls, put together from their pieces by their index."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[list[str], list[str]]] = {}

    def add(self, delta: Delta) -> None:
        """Take in what a chunk adds."""
        for position, call in enumerate(delta.tool_calls or ()):
            self._piece(position if call.index is None else call.index, call.function)
        if delta.function_call is not None:
            self._piece(0, delta.function_call)

    def _piece(self, index: int, function: ToolFunction | None) -> None:
        names, arguments = self._calls.setdefault(index, ([], []))
        if function is not None:
            names += [function.name] if function.name else []
            arguments += [function.arguments] if function.arguments else []

    def whole(self) -> list[dict[str, str]]:
        """The calls in the order of their index: ``name`` and the JSON text of ``arguments``."""
        return [
            {"name": mended("".join(names))[0], "arguments": mended("".join(arguments))[0]}
            for _, (names, arguments) in sorted(self._calls.items())
        ]


def _failure(
    reading: Reading, content: dict[str, Any], *, broken: str | None, complete: bool
) -> tuple[str, str] | None:
    """What is wrong with a stream whose transport did not fail: cause and message; None if nothing is.

    An answer is whole if it names a reason to stop that is a good one; ``[DONE]`` alone proves nothing.
    """
    if reading.failure is not None:
        return "stream_error", reading.failure
    problem = broken or reading.problem
    if problem is not None:
        return "malformed", problem
    if reading.answers > 1:
        return "malformed", f"{reading.answers} answers came to one request"
    reason = content["finish_reason"]
    word = (reason or "").strip().lower()
    if word in _ABORTS:
        return "aborted", f"the server ended the answer with {reason!r}"
    if word in _ERRORS:
        return "stream_error", f"the server ended the answer with {reason!r}"
    if not complete:
        return "truncated", "the answer broke off"
    claimed = content["output_tokens"] or 0
    aside = "" if reading.aside is None else f"; the server said {reading.aside}"
    # one token and no text is the end of the sequence at once
    if not len(content["chunks"]) and claimed != 1:
        return (
            "empty",
            f"the server counts {claimed} tokens, but nothing came" if claimed else f"the answer has no tokens{aside}",
        )
    if reason is None:
        return "truncated", f"the answer ended without a reason to stop{aside}"
    if reason not in GOOD_ENDS:
        return "unknown_end", f"the server ended the answer with {reason!r}"
    return None
