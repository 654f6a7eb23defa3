"""From the bytes of one answer and their arrival times to what was answered and when, after the stream has ended."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvload.records import Status
from kvload.rundir import CHUNK_DTYPE
from kvload.workloads.client.fast import read_wire, split_body
from kvload.workloads.client.http1 import ResponseHead
from kvload.workloads.client.sse import Reading, Usage, count_tokens, error_text, server_times
from kvload.workloads.clock import TIMESPEC


@dataclass(slots=True)
class RawStream:
    """One request as the streaming client leaves it: bytes, stamps and how it ended.

    Attributes:
        key: whatever the caller gave with the request.
        reads: three items for each read, see below; one list, since to touch several for every chunk of a thousand
            streams costs more than the rest of the work on it.
        tie_offset_ns: ``CLOCK_REALTIME`` minus ``CLOCK_MONOTONIC`` while it ran, None if wall time was stepped then.
        t_send_ns: just before its first byte was handed to the kernel; None if that never happened.
        complete: the answer ended as its framing says.
        cause, error: why it ended otherwise.
        retries: times it was sent again after a stale connection.
    """

    key: Any
    t_start_ns: int
    reads: list[Any] = field(default_factory=list)
    tie_offset_ns: int | None = None
    t_send_ns: int | None = None
    t_end_ns: int = 0
    head: ResponseHead | None = None
    body_start: int = 0
    complete: bool = False
    status: Status = "ok"
    cause: str | None = None
    error: str | None = None
    retries: int = 0

    @property
    def pieces(self) -> list[bytes]:
        """What each read gave."""
        return self.reads[0::3]

    @property
    def stamps(self) -> list[bytes | None]:
        """The kernel's receive stamp of each piece (raw ``struct timespec``), None where there was none."""
        return self.reads[1::3]

    @property
    def seen_ns(self) -> list[int]:
        """When user space learnt of each piece (monotonic)."""
        return self.reads[2::3]


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome; times are monotonic nanoseconds, fields as in :class:`kvload.records.RequestRecord`.

    Attributes:
        chunks: ``CHUNK_DTYPE`` rows, one for each token-carrying chunk.
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
    t_last_ns: int | None = None
    chunks: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, CHUNK_DTYPE))
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_source: Literal["usage", "token_ids", "chunks"] | None = None
    first_chunk_tokens: int | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    retries: int = 0
    merged_reads: int = 0


def parse_answer(raw: RawStream) -> Answer:
    """Take one answer apart. Never raises for anything a server may send: what is wrong becomes status and cause."""
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
    times = arrivals[np.minimum(rows, len(arrivals) - 1)] if len(rows) else np.empty(0, np.int64)
    content = _content(reading, times, raw.t_send_ns or raw.t_start_ns)
    failed = _failure(reading, content, broken=broken, complete=raw.complete)
    # a connection closed over a broken framing broke off, but that is not what was wrong
    if failed is not None and (status == "ok" or (broken is not None and cause == "truncated")):
        status, cause, error = "failed", failed[0], failed[1]
    if cause == "timeout" and content["t_last_ns"] is not None:
        # tokens had come, then nothing for more than half of all the time it had
        quiet_ns = raw.t_end_ns - content["t_last_ns"]
        cause = "stall" if quiet_ns > (raw.t_end_ns - (raw.t_send_ns or raw.t_start_ns)) / 2 else "timeout"
    merged = int(np.count_nonzero(rows[1:] == rows[:-1]))
    return Answer(status=status, cause=cause, error=error, merged_reads=merged, **base, **content)


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


def _content(reading: Reading, times: npt.NDArray[np.int64], t_send_ns: int) -> dict[str, Any]:
    """Tokens, text and the server's own figures, from the events and their arrival times."""
    counts, known = count_tokens(reading)
    any_event = bool(reading.ends.size)
    texts: list[str] = []
    token_ids: list[int] = []
    finish_reason: str | None = None
    usage: Usage | None = None
    metrics: dict[str, Any] = {}
    for number, event in enumerate(reading.events):
        if number == reading.run_at:
            texts += reading.run
        if event.usage is not None:
            usage = event.usage
        if event.metrics:
            metrics = event.metrics
        if not event.choices:
            continue
        choice = event.choices[0]
        if choice.finish_reason is not None:
            finish_reason = choice.finish_reason
        if choice.token_ids:
            token_ids += choice.token_ids
        if choice.text is not None:
            texts.append(choice.text)
        else:
            delta = choice.delta or choice.message
            if delta is not None and delta.content:
                texts.append(delta.content)
    if reading.run_at == len(reading.events):
        texts += reading.run
    carrying = np.flatnonzero(counts)
    chunks = np.empty(len(carrying), CHUNK_DTYPE)
    at = times[carrying]
    chunks["us"] = np.clip((at - t_send_ns + 500) // 1000, 0, 0xFFFFFFFF)
    chunks["tokens"] = np.minimum(counts[carrying], 0xFFFF)
    total = usage.completion_tokens if usage else None
    source: str | None = "usage"
    if total is None:
        total = int(counts.sum())
        source = ("token_ids" if known else "chunks") if any_event else None
        total = total if any_event else None
    return {
        "t_first_ns": int(at[0]) if len(at) else None,
        "t_last_ns": int(at[-1]) if len(at) else None,
        "chunks": chunks,
        "first_chunk_tokens": int(counts[carrying[0]]) if len(carrying) else None,
        "text": "".join(texts) if any_event else None,
        "token_ids": token_ids or None,
        "finish_reason": finish_reason,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "output_tokens": total,
        "output_tokens_source": source,
        **server_times(metrics),
    }


def _failure(
    reading: Reading, content: dict[str, Any], *, broken: str | None, complete: bool
) -> tuple[str, str] | None:
    """What is wrong with a stream whose transport did not fail: cause and message; None if nothing is."""
    for event in reading.events:
        if bytes(event.error) != b"null":
            return "stream_error", error_text(b'{"error":' + bytes(event.error) + b"}")
    problem = broken or reading.problem
    if problem is not None:
        return "malformed", problem
    if not complete:
        return "truncated", "the answer broke off"
    if reading.done or content["finish_reason"] is not None:
        if content["finish_reason"] is None and not content["output_tokens"]:
            return "empty", "the answer has no tokens and no reason to stop"
        return None
    return "truncated", "the answer ended without [DONE] and without a reason to stop"
