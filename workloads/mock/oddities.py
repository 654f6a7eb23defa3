"""What real servers and proxies were seen to send besides what they should: each kind by name, with what is true of it.

In every one the first token comes at the server's TTFT and the others one ITL apart, as in an answer without fault;
what differs is what is said about them, and how. :data:`EXPECTED` says how a client has to take each.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kvload.workloads.mock.behaviour import ODDITIES, MockSettings
from kvload.workloads.mock.steps import (
    CLOSE_HEAD,
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Action,
    Step,
    http_chunk,
    json_response,
)

DEEP = b"[" * 2000 + b"]" * 2000
RUNAWAY_BYTES = 80 << 20
"""More than any answer may have."""


@dataclass(frozen=True)
class Expected:
    """How an answer has to be taken.

    Attributes:
        status, cause: of its record.
        counted: its tokens are counted right (they are as many as were sent).
        doubted: the server's own count is impossible and is said to be.
        timed: TTFT and TPOT are the server's; where not, there is no TPOT at all.
        begun_late: so many ITL later than the server's is the first token, which something on the way held back.
    """

    status: Literal["ok", "failed", "timeout"] = "ok"
    cause: str | None = None
    counted: bool = True
    doubted: bool = False
    timed: bool = True
    begun_late: int = 0


@dataclass(frozen=True)
class Script:
    """One answer, before it is wrapped into HTTP.

    Attributes:
        early: written at once, ahead of the first token.
        chunks: one payload for each token chunk.
        ending: written right behind the last.
        gathered: everything is written at once, when the last chunk is due.
        tail: what ends the HTTP body.
        action: what happens to the connection then.
        whole: the raw bytes of the whole response, instead of all that.
    """

    early: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    ending: bytes = b""
    gathered: bool = False
    tail: bytes = LAST_CHUNK
    action: Action = Action.FINISH
    whole: bytes | None = None


def odd_steps(name: str, chat: bool, texts: list[str], prompt_tokens: int, settings: MockSettings) -> Iterator[Step]:
    """Everything the server does for one request.

    Args:
        name: which kind, of :data:`~kvload.workloads.mock.behaviour.ODDITIES`.
        texts: the text of every token chunk.
    """
    made = script(name, chat, texts, prompt_tokens)
    ttft_ns, itl_ns = round(settings.ttft_s * 1e9), round(settings.itl_s * 1e9)
    all_ns = ttft_ns + itl_ns * (len(texts) - 1)
    if made.whole is not None:
        yield all_ns, made.whole, made.action
        return
    early = http_chunk(made.early) if made.early else b""
    if made.gathered:
        body = b"".join(map(http_chunk, made.chunks)) + http_chunk(made.ending) + made.tail
        yield 0, STREAM_HEAD + early, Action.NONE
        yield all_ns, body, made.action
        return
    yield 0, STREAM_HEAD + early, Action.NONE
    for number, chunk in enumerate(made.chunks):
        yield itl_ns if number else ttft_ns, http_chunk(chunk) if chunk else b"", Action.TOKENS
    if name == "runaway":
        piece = http_chunk(made.chunks[0]) * 2000
        for _ in range(RUNAWAY_BYTES // len(piece)):
            yield 8_000_000, piece, Action.NONE
    yield 0, (http_chunk(made.ending) if made.ending else b"") + made.tail, made.action


def script(name: str, chat: bool, texts: list[str], prompt_tokens: int) -> Script:
    """One answer of a kind, as in :func:`odd_steps`, before it is wrapped into HTTP."""
    return _MAKERS[name](_Maker(chat, texts, prompt_tokens))


class _Maker:
    """Writes chunks of one answer."""

    def __init__(self, chat: bool, texts: list[str], prompt_tokens: int) -> None:
        self.chat = chat
        self.texts = texts
        self.prompt_tokens = prompt_tokens

    def chunk(self, text: str | None, finish: Any = None, *, part: str = "content", **more: Any) -> dict[str, Any]:
        """A chunk with text; in a chat under the name ``part`` of its delta."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if self.chat or part != "content":
            choice["delta"] = {} if text is None else {part: text}
        else:
            choice["text"] = text or ""
        return {"id": "mock", "object": "chunk", "model": "mock", "choices": [choice], **more}

    def usage(self, tokens: Any, **more: Any) -> dict[str, Any]:
        """The chunk with the server's count."""
        return {"choices": [], "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, **more}}

    def script(
        self,
        *ending: Any,
        each: Callable[[int, str], Any] | None = None,
        finish: Any = "length",
        tokens: Any = "right",
        **more: Any,
    ) -> Script:
        """An answer, as it should be but for what is given.

        Args:
            ending: chunks behind the closing one.
            each: makes the chunk of a text.
            finish: the reason to stop; no closing chunk where None.
            tokens: the server's count in the end; no usage where None.
        """
        write = each or (lambda _number, text: self.chunk(text))
        closing = [] if finish is None else [self.chunk(None, finish)]
        count = len(self.texts) if tokens == "right" else tokens
        last = [] if tokens is None else [self.usage(count)]
        chunks = [event(write(number, text)) for number, text in enumerate(self.texts)]
        end = b"".join(map(event, [*closing, *ending, *last])) + DONE
        return Script(chunks=chunks, ending=end, **more)

    def with_totals(self, total: Callable[[int], Any], tokens: Any = "right") -> Script:
        """A running count beside every chunk."""
        return self.script(
            each=lambda number, text: self.chunk(text, usage={"completion_tokens": total(number)}), tokens=tokens
        )


def event(value: Any) -> bytes:
    """One event; bytes are its data as they are."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def _ended(make: _Maker, ending: bytes, **more: Any) -> Script:
    """The right chunks, and another ending."""
    return replace(make.script(), ending=ending, **more)


def _closing(make: _Maker) -> bytes:
    return event(make.chunk(None, "length")) + event(make.usage(len(make.texts)))


def _at(make: _Maker, place: int, data: Any) -> Script:
    """One of the chunks replaced."""
    script = make.script()
    chunks = list(script.chunks)
    chunks[min(place, len(chunks) - 1)] = event(data)
    return replace(script, chunks=chunks)


def _thinking(make: _Maker, **usage: Any) -> Script:
    half = len(make.texts) // 2
    return make.script(
        each=lambda number, text: make.chunk(text, part="reasoning_content" if number < half else "content"), **usage
    )


def _half_of_pair(number: int) -> bytes:
    return b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}' % (b"\\ud83d" if number % 2 == 0 else b"\\ude00")


def _tool_piece(number: int, text: str) -> Any:
    function = {"name": "look", "arguments": ""} if number == 0 else {"arguments": json.dumps(text)[1:-1]}
    delta = {"tool_calls": [{"index": 0, "function": function}]}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _twice(chunk: dict[str, Any]) -> Any:
    """A chunk of two answers that say the same."""
    return chunk | {"choices": [*chunk["choices"], chunk["choices"][0] | {"index": 1}]}


def _with_logprobs(chunk: dict[str, Any]) -> Any:
    """A chunk with the log probability of every word in it."""
    (choice,) = chunk["choices"]
    said = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
    listed = [{"token": word, "logprob": -1.0} for word in said.split()]
    return chunk | {"choices": [choice | {"logprobs": {"content": listed}}]}


_MAKERS: Mapping[str, Callable[[_Maker], Script]] = {
    "usage_zero": lambda make: make.script(tokens=0),
    "usage_zero_everywhere": lambda make: make.with_totals(lambda _: 0, 0),
    "usage_negative": lambda make: make.script(tokens=-7),
    "usage_short": lambda make: make.script(tokens=max(len(make.texts) // 2, 0)),
    "usage_absurd": lambda make: make.script(tokens=10**30),
    "usage_absurd_everywhere": lambda make: make.with_totals(lambda _: 10**30, 10**30),
    "usage_inflated": lambda make: make.script(tokens=55 + 5 * len(make.texts)),
    "usage_beyond_text": lambda make: make.script(
        tokens=sum(len(text.encode()) for text in make.texts) + 20, finish="stop"
    ),
    "usage_jumps": lambda make: make.with_totals(lambda number: number + 1, 3 * len(make.texts)),
    "usage_missing": lambda make: make.script(tokens=None),
    "ends_early": lambda make: _Maker(make.chat, make.texts[: len(make.texts) // 2], make.prompt_tokens).script(
        finish="stop"
    ),
    "runs_on": lambda make: _Maker(make.chat, 2 * make.texts, make.prompt_tokens).script(),
    "two_answers": lambda make: make.script(each=lambda _, text: _twice(make.chunk(text))),
    "logprobs_uncounted": lambda make: make.script(each=lambda _, text: _with_logprobs(make.chunk(text)), tokens=None),
    "list_error": lambda _: Script(
        whole=json_response("200 OK", None, raw=b'[{"error": {"code": 429, "message": "out of pages"}}]')
    ),
    "chunks_counted": lambda make: make.script(),
    "cached_absurd": lambda make: make.script(
        make.usage(len(make.texts), prompt_tokens_details={"cached_tokens": make.prompt_tokens + 100}), tokens=None
    ),
    "usage_as_float": lambda make: make.script(tokens=float(len(make.texts))),
    "usage_running": lambda make: make.with_totals(lambda number: number + 1),
    "usage_late": lambda make: make.with_totals(lambda number: 0 if number < len(make.texts) - 1 else number + 1),
    "usage_lagging": lambda make: make.with_totals(lambda number: number),
    "end_token": lambda make: replace(make.script(finish="stop"), chunks=make.script().chunks[:-1]),
    "reasoning": _thinking,
    "thinking": lambda make: make.script(
        each=lambda number, text: make.chunk(text, part="thinking" if number < len(make.texts) // 2 else "content")
    ),
    "reasoning_uncounted": lambda make: _thinking(make, tokens=len(make.texts) - len(make.texts) // 2),
    "tool_calls": lambda make: make.script(each=_tool_piece, finish="tool_calls"),
    "refusal": lambda make: make.script(each=lambda _, text: make.chunk(text, part="refusal"), finish="content_filter"),
    "aborted": lambda make: make.script(finish="abort"),
    "finish_error": lambda make: make.script(finish="error"),
    "aborted_then_stopped": lambda make: make.script(make.chunk(None, "stop"), finish="abort"),
    "finish_empty": lambda make: make.script(finish=""),
    "finish_null": lambda make: make.script(finish="null"),
    "finish_unknown": lambda make: make.script(finish="because"),
    "done_alone": lambda make: make.script(finish=None),
    "event_error": lambda make: _ended(make, b'event: error\ndata: {"message": "out of pages"}\n\n' + DONE),
    "object_error": lambda make: _ended(make, event({"object": "error", "message": "out of pages"}) + DONE),
    "error_code": lambda make: _ended(make, event({"text": "out of pages", "error_code": 50001}) + DONE),
    "field_error": lambda make: _ended(make, b'error: {"code": 500, "message": "out of pages"}\n\n'),
    "choice_error": lambda make: _ended(
        make, event({"choices": [{"error": {"message": "out of pages"}, "finish_reason": "stop"}]}) + DONE
    ),
    "delta_error": lambda make: _ended(
        make, event({"choices": [{"index": 0, "delta": {"error": {"message": "out of pages"}}}]}) + DONE
    ),
    "bare_error": lambda make: _ended(
        make, event({"type": "error", "code": 500, "message": "out of pages"}) + _closing(make) + DONE
    ),
    "error_first": lambda _: Script(ending=event({"error": {"message": "out of pages"}}) + DONE),
    "error_null": lambda make: make.script(each=lambda _, text: make.chunk(text, error=None)),
    "error_empty": lambda make: make.script(each=lambda _, text: make.chunk(text, error="")),
    "empty_answer": lambda make: Script(ending=event(make.chunk("", "stop")) + event(make.usage(0)) + DONE),
    "usage_without_text": lambda make: Script(
        ending=event(make.chunk("", "stop")) + event(make.usage(len(make.texts))) + DONE
    ),
    "keep_alives": lambda make: replace(
        make.script(), early=b": ping\n\n" + event(make.chunk("")) * 3 + b"data:\n\ndata: \n\n"
    ),
    "closing_empty": lambda make: make.script(make.chunk("", None), finish="stop"),
    "done_spaced": lambda make: _ended(make, _closing(make) + b"data:  [DONE] \r\n\r\n"),
    "done_twice": lambda make: _ended(make, _closing(make) + DONE + DONE),
    "text_after_done": lambda make: _ended(make, _closing(make) + DONE + event(make.chunk("!")) + b"bye\n\n"),
    "list_content": lambda make: make.script(
        each=lambda _, text: make.chunk([{"type": "text", "text": text}])  # type: ignore[arg-type]
    ),
    "infinite_logprobs": lambda make: make.script(
        each=lambda _, text: json.dumps(make.chunk(text)).encode()[:-1] + b', "logprobs": [-Infinity, NaN]}'
    ),
    "surrogate_halves": lambda make: make.script(each=lambda number, _: _half_of_pair(number)),
    "no_utf8": lambda make: _at(make, 1, json.dumps(make.chunk("a?b")).encode().replace(b"?", b"\xe4")),
    "deep_event": lambda make: _at(make, 1, b'{"extra":' + DEEP + b"}"),
    "huge_metrics": lambda make: make.script(b'{"choices":[],"metrics":{"queue_time_ms":' + b"9" * 400 + b"}}"),
    "deep_error_body": lambda _: Script(whole=json_response("500 Internal Server Error", None, raw=DEEP)),
    "bursts": lambda make: replace(make.script(), gathered=True),
    "first_gathered": lambda make: replace(
        make.script(), chunks=[b"", b"", b"".join(make.script().chunks[:3]), *make.script().chunks[3:]]
    ),
    "whole_json": lambda make: Script(
        whole=json_response(
            "200 OK",
            {
                "choices": [{"index": 0, "message": {"content": "".join(make.texts)}, "finish_reason": "length"}],
                "usage": {"prompt_tokens": make.prompt_tokens, "completion_tokens": len(make.texts)},
            },
        )
    ),
    "html": lambda _: Script(whole=json_response("200 OK", None, raw=b"<html>a gateway</html>", kind="text/html")),
    "no_last_chunk": lambda make: replace(make.script(), tail=b"", action=Action.STALL),
    "closed_after_done": lambda make: replace(make.script(), tail=b"", action=Action.CLOSE),
    "bytes_after_end": lambda make: replace(make.script(), tail=LAST_CHUNK + b"more than there is"),
    "bytes_after_early_end": lambda make: _ended(make, b": no end\n\n", tail=LAST_CHUNK + b"more"),
    "runaway": lambda make: make.script(action=Action.CLOSE),
    "too_large": lambda _: Script(
        whole=CLOSE_HEAD.replace(b"connection: close", b"content-length: %d" % (RUNAWAY_BYTES * 20)) + b"data: x",
        action=Action.STALL,
    ),
}

_OUT_OF_PAGES = Expected("failed", "stream_error", counted=False)
_NO_REASON = Expected("failed", "truncated")
_MALFORMED = Expected("failed", "malformed", counted=False)
EXPECTED: Mapping[str, Expected] = {
    **dict.fromkeys(ODDITIES, Expected()),
    **dict.fromkeys(
        ("usage_zero", "usage_zero_everywhere", "usage_negative", "usage_short", "usage_absurd"), Expected(doubted=True)
    ),
    **dict.fromkeys(("usage_absurd_everywhere", "usage_inflated", "reasoning_uncounted"), Expected(doubted=True)),
    **dict.fromkeys(("finish_empty", "finish_null", "done_alone"), _NO_REASON),
    **dict.fromkeys(("usage_beyond_text", "usage_jumps"), Expected(doubted=True)),
    **dict.fromkeys(("aborted", "aborted_then_stopped"), Expected("failed", "aborted")),
    "error_first": Expected("failed", "stream_error", counted=False, timed=False),
    "bare_error": Expected("failed", "stream_error"),
    "usage_without_text": Expected("failed", "empty", timed=False),
    "first_gathered": Expected(begun_late=2),
    "finish_error": Expected("failed", "stream_error"),
    "finish_unknown": Expected("failed", "unknown_end"),
    **dict.fromkeys(
        ("event_error", "object_error", "error_code", "field_error", "choice_error", "delta_error"), _OUT_OF_PAGES
    ),
    "ends_early": Expected(counted=False),
    "runs_on": Expected(counted=False),
    "two_answers": Expected("failed", "malformed"),
    "list_error": Expected("failed", "stream_error", counted=False, timed=False),
    "empty_answer": Expected("failed", "empty", counted=False, timed=False),
    "deep_event": _MALFORMED,
    "deep_error_body": Expected("failed", "http_500", counted=False, timed=False),
    "bursts": Expected(timed=False),
    "whole_json": Expected(timed=False),
    "html": Expected("failed", "malformed", counted=False, timed=False),
    "bytes_after_early_end": Expected("failed", "malformed"),
    "runaway": Expected("failed", "malformed", counted=False, timed=False),
    "too_large": Expected("failed", "malformed", counted=False, timed=False),
}
"""How a client has to take each kind."""
