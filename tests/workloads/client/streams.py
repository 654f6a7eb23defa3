"""Answers as servers write them, with times that are known: what the tests of the streaming client are made from."""

import json
import struct
from collections.abc import Sequence
from typing import Any

from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.client.http1 import ResponseHead
from kvload.workloads.client.raw import RawStream

SECOND = 1_000_000_000
WALL_OFFSET_NS = 1_700_000_000 * SECOND


def timed(reads: Sequence[tuple[float, bytes]], *, kind: str = "text/event-stream", complete: bool = True) -> RawStream:
    """A stream sent at 5 s, with what each read gave and how many milliseconds later it arrived."""
    raw = RawStream("key", 5 * SECOND)
    raw.t_send_ns = 5 * SECOND
    for after_ms, piece in reads:
        at = 5 * SECOND + round(after_ms * 1e6)
        raw.reads += (piece, struct.pack("@qq", *divmod(at + WALL_OFFSET_NS, SECOND)), at + 300_000)
    raw.tie_offset_ns = WALL_OFFSET_NS
    raw.head = ResponseHead(200, "close", 0, True, kind)
    raw.complete = complete
    raw.t_end_ns = raw.seen_ns[-1]
    return raw


def data(value: Any) -> bytes:
    """One event."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


DONE = data(b"[DONE]")
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def chat(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of a chat."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def usage(tokens: Any, **more: Any) -> dict[str, Any]:
    """The last chunk of an answer, with the server's count."""
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens, **more}}


def ten_words(*ending: Any, each: Any = None) -> list[tuple[float, bytes]]:
    """The role at once, ten words from 100 ms on every 20 ms, and the ending at 280 ms.

    Args:
        ending: chunks behind the words; a reason to stop and a usage of 10 where there are none.
        each: makes the chunk of word ``i``; a chat's where None.
    """
    word = each or (lambda number: chat(content=f" w{number}"))
    reads = [(1.0, data(ROLE))] + [(100.0 + 20.0 * number, data(word(number))) for number in range(10)]
    return [*reads, (280.0, b"".join(map(data, ending or (chat("stop"), usage(10)))) + DONE)]


def parse(reads: Sequence[tuple[float, bytes]], max_tokens: int | None = None, **how: Any) -> Answer:
    """The answer in these reads."""
    return parse_answer(timed(reads, **how), max_tokens)


def ttft_ms(answer: Answer) -> float | None:
    """Time to the first token, in milliseconds."""
    return None if answer.t_first_ns is None else (answer.t_first_ns - 5 * SECOND) / 1e6


def tpot_ms(answer: Answer) -> float | None:
    """Time per later token, in milliseconds; None as the record's is."""
    if answer.t_first_ns is None or answer.t_last_ns is None or answer.in_bursts:
        return None
    later = (answer.output_tokens or 0) - (answer.first_chunk_tokens or 0) - answer.end_tokens
    return (answer.t_last_ns - answer.t_first_ns) / 1e6 / later if later > 0 else None
