"""One chunk of an OpenAI-compatible answer: what kvload needs of it, read strictly where it is as documented, and
leniently where it is not.

A field that kvload does not need may have any type, and a text may be damaged: neither makes a chunk unreadable. What
no reading makes sense of is a malformed chunk of this one answer, never an exception.
"""

import json
import math
import re
from typing import Any

import msgspec

from kvload.untrusted import DECODE_ERRORS

MAX_ERROR_CHARS = 500
MAX_COUNT = (1 << 31) - 1
"""No answer has more tokens than this: a larger number is none."""

NO_RAW = msgspec.Raw(b"null")
"""Stands where a field that is kept as it came did not come."""
NO_ERROR = frozenset({b"null", b'""', b"{}", b"[]", b"false", b"0"})
"""JSON that says that there is no error, where one could stand."""
_SAYS_ERROR = frozenset({"error", "failed", "failure", "exception"})
_MARKS = ("type", "status", "event", "object")
_COMPLAINTS = ("errors", "error_message", "error_msg", "Error", "err", "detail")
_WORDS = ("error", "message", *_COMPLAINTS, "text", "data", "error_code")
"""Where servers were seen to write an error that comes in place of a chunk: a mark, or the message itself."""
_LONE_HIGH = re.compile("[\ud800-\udbff](?![\udc00-\udfff])")
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")
_SURROGATES = re.compile("[\ud800-\udfff]")


class ToolCall(msgspec.Struct):
    """A tool call, or the piece of one that a chunk adds."""

    index: int | None = None
    function: "ToolFunction | None" = None


class ToolFunction(msgspec.Struct):
    """What is called, and (a piece of) the JSON of its arguments."""

    name: str | None = None
    arguments: str | None = None


class Delta(msgspec.Struct):
    """What a chat chunk adds; ``message`` of a whole answer has the same form."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_text: str | None = None
    thinking: str | None = None
    reasoning_details: msgspec.Raw = NO_RAW
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: ToolFunction | None = None
    audio: msgspec.Raw = NO_RAW
    error: msgspec.Raw = NO_RAW

    @property
    def thought(self) -> str:
        """The reasoning in it, under whichever name; servers that use several say the same in all."""
        return (
            self.reasoning_content
            or self.reasoning
            or self.thinking
            or self.reasoning_text
            or ("" if self.reasoning_details is NO_RAW else _parts(self.reasoning_details))
        )

    @property
    def answers(self) -> bool:
        """It holds something of the answer itself, as opposed to the reasoning before it."""
        return bool(self.content or self.refusal or self.tool_calls or self.function_call) or (
            self.audio is not NO_RAW and bytes(self.audio) not in NO_ERROR
        )


class LogProbs(msgspec.Struct):
    """Log probabilities: an entry for each token, under ``content`` in a chat and ``tokens`` elsewhere."""

    content: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    """One answer of a chunk; only the first is looked at."""

    index: int | None = None
    text: str | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: LogProbs | None = None
    error: msgspec.Raw = NO_RAW

    @property
    def listed(self) -> int | None:
        """Tokens that the chunk lists, by their ids or their log probabilities; None where it lists none."""
        if self.token_ids is not None:
            return len(self.token_ids)
        if self.logprobs is None:
            return None
        each = self.logprobs.content if self.logprobs.content is not None else self.logprobs.tokens
        return None if each is None else len(each)

    @property
    def added(self) -> Delta | None:
        """The chat's part, streamed or whole."""
        return self.delta or self.message

    @property
    def carries(self) -> bool:
        """It holds something that a user waits for: text, reasoning, a tool call, a refusal."""
        if self.text:
            return True
        added = self.delta or self.message
        return added is not None and bool(added.content or added.thought or added.answers)

    @property
    def answers(self) -> bool:
        """It holds something of the answer itself."""
        added = self.added
        return bool(self.text) or (added is not None and added.answers)

    @property
    def names_a_role(self) -> bool:
        """The opening chunk of a chat, with nothing in it but the role."""
        return self.delta is not None and self.delta.role is not None and not self.carries


class UsageDetails(msgspec.Struct):
    """The part of the usage that says what the tokens were for."""

    reasoning_tokens: int | None = None


class PromptDetails(msgspec.Struct):
    """The part of the usage that says where the prompt's tokens came from."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """The server's own count."""

    prompt_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    completion_tokens_details: UsageDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompt that the prefix cache held, in OpenAI's words or in DeepSeek's."""
        details = self.prompt_tokens_details
        cached = None if details is None else details.cached_tokens
        return self.prompt_cache_hit_tokens if cached is None else cached

    @property
    def thought_tokens(self) -> int | None:
        """Tokens of reasoning, where the server tells them apart."""
        details = self.completion_tokens_details
        return (
            self.reasoning_tokens if details is None or details.reasoning_tokens is None else details.reasoning_tokens
        )


class Event(msgspec.Struct):
    """One chunk, as far as it matters here; ``error`` is kept as it came.

    Attributes:
        object, error_code, message: how some servers write an error, see :attr:`failure`.
    """

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = NO_RAW
    metrics: dict[str, Any] | None = None
    object: str | None = None
    error_code: int | str | None = None

    @property
    def choice(self) -> Choice | None:
        """The first choice."""
        return self.choices[0] if self.choices else None

    def failure(self, data: bytes) -> str | None:
        """What the server says went wrong; None where it says nothing of the kind.

        Args:
            data: the chunk's JSON, for the servers that write the message beside the mark.
        """
        choice = self.choices[0] if self.choices else None
        added = None if choice is None else choice.delta or choice.message
        for error in (
            self.error,
            NO_RAW if choice is None else choice.error,
            NO_RAW if added is None else added.error,
        ):
            # the default itself in most chunks
            if error is not NO_RAW and bytes(error) not in NO_ERROR:
                return error_text(bytes(error))
        if self.object == "error" or self.error_code:
            return error_text(data)
        return _complaint(data) if choice is None and self.usage is None else None


_EVENT = msgspec.json.Decoder(Event)
_EVENTS = msgspec.json.Decoder(list[Event])


def _complaint(data: bytes) -> str | None:
    """What is wrong, by an event that is no chunk at all; None where it is not about an error."""
    try:
        value = msgspec.json.decode(data)
    except DECODE_ERRORS:
        return None
    if not isinstance(value, dict) or "choices" in value:
        return None
    code = value.get("code")
    marked = any(str(value.get(name)).lower().rpartition(".")[2] in _SAYS_ERROR for name in _MARKS)
    failed = value.get("success") is False or (type(code) is int and code >= 400 and "message" in value)
    if marked or failed or any(value.get(name) for name in _COMPLAINTS):
        return error_text(data)
    return None


def decode_all(datas: list[bytes]) -> list[Event] | None:
    """Decode every chunk at once, at a third of the cost; None unless each of them is as documented."""
    try:
        events = _EVENTS.decode(b"[" + b",".join(datas) + b"]")
    except DECODE_ERRORS:
        return None
    return events if len(events) == len(datas) else None


def decode_strictly(data: bytes) -> Event | None:
    """One chunk that is as documented; None where it is not."""
    try:
        return _EVENT.decode(data)
    except DECODE_ERRORS:
        return None


def decode(data: bytes) -> Event:
    """One chunk, however it is written.

    Raises:
        ValueError: it is no JSON, too deep, holds a number no computer needs, or has choices that are none.
    """
    strict = decode_strictly(data)
    if strict is not None:
        return strict
    try:
        # Python's reader knows NaN, Infinity and halves of surrogate pairs; bytes that are no UTF-8 stay recognisable
        value = json.loads(data.decode("utf-8", "surrogateescape"))
    except DECODE_ERRORS as problem:
        raise ValueError(f"{_short(problem)}: {data[:80]!r}") from None
    if isinstance(value, list) and value:
        value = value[0]  # Google's gateways put an error into a list
    return _event(value, data) if isinstance(value, dict) else Event()


def _short(problem: Exception) -> str:
    return "nested too deep" if isinstance(problem, RecursionError) else str(problem)


def _event(value: dict[str, Any], data: bytes) -> Event:
    choices = value.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(one, dict) for one in choices)):
        raise ValueError(f"choices that are none: {data[:80]!r}")
    usage = value.get("usage")
    metrics = value.get("metrics")
    code = value.get("error_code")
    return Event(
        choices=None if choices is None else [_choice(one) for one in choices],
        usage=_usage(usage) if isinstance(usage, dict) else None,
        error=_raw(value.get("error")),
        metrics=metrics if isinstance(metrics, dict) else None,
        object=_text(value.get("object")),
        error_code=code if isinstance(code, int | str) else None,
    )


def _choice(value: dict[str, Any]) -> Choice:
    ids = value.get("token_ids")
    index = value.get("index")
    return Choice(
        index=index if type(index) is int else None,
        text=_text(value.get("text")),
        delta=_delta(value.get("delta")),
        message=_delta(value.get("message")),
        finish_reason=_text(value.get("finish_reason")),
        token_ids=ids if isinstance(ids, list) and all(type(one) is int for one in ids) else None,
        logprobs=_logprobs(value.get("logprobs")),
        error=_raw(value.get("error")),
    )


def _logprobs(value: Any) -> LogProbs | None:
    if not isinstance(value, dict):
        return None
    lists = [value.get(name) for name in ("content", "tokens")]
    return LogProbs(*([_raw(one) for one in each] if isinstance(each, list) else None for each in lists))


def _delta(value: Any) -> Delta | None:
    if not isinstance(value, dict):
        return None
    calls = value.get("tool_calls")
    calls = [calls] if isinstance(calls, dict) else calls
    return Delta(
        role=_text(value.get("role")),
        content=_text(value.get("content")),
        reasoning=_text(value.get("reasoning")),
        reasoning_content=_text(value.get("reasoning_content")),
        reasoning_text=_text(value.get("reasoning_text")),
        thinking=_text(value.get("thinking")),
        reasoning_details=_raw_or_none(value.get("reasoning_details")),
        refusal=_text(value.get("refusal")),
        tool_calls=[_tool_call(one) for one in calls if isinstance(one, dict)] if isinstance(calls, list) else None,
        function_call=_function(value.get("function_call")),
        audio=_raw_or_none(value.get("audio")),
        error=_raw_or_none(value.get("error")),
    )


def _tool_call(value: dict[str, Any]) -> ToolCall:
    index = value.get("index")
    return ToolCall(index if type(index) is int else None, _function(value.get("function")))


def _function(value: Any) -> ToolFunction | None:
    if not isinstance(value, dict):
        return None
    arguments = value.get("arguments")
    if isinstance(arguments, dict | list):
        arguments = json.dumps(arguments)
    return ToolFunction(_text(value.get("name")), _text(arguments))


def _text(value: Any) -> str | None:
    """Text, plain or as a list of parts; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        return "".join(part for part in parts if isinstance(part, str))
    return None


def _usage(value: dict[str, Any]) -> Usage:
    details = value.get("completion_tokens_details")
    prompt_details = value.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=_count(value.get("prompt_tokens")),
        prompt_tokens_details=(
            PromptDetails(_count(prompt_details.get("cached_tokens"))) if isinstance(prompt_details, dict) else None
        ),
        prompt_cache_hit_tokens=_count(value.get("prompt_cache_hit_tokens")),
        completion_tokens=_count(value.get("completion_tokens")),
        reasoning_tokens=_count(value.get("reasoning_tokens")),
        completion_tokens_details=(
            UsageDetails(_count(details.get("reasoning_tokens"))) if isinstance(details, dict) else None
        ),
    )


def _count(value: Any) -> int | None:
    """A whole number, also where it is written as ``10.0`` or ``"10"``."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if type(value) is int else None


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode("utf-8", "replace"))


def _raw_or_none(value: Any) -> msgspec.Raw:
    return NO_RAW if value is None else _raw(value)


def _parts(details: msgspec.Raw) -> str:
    """The text in a list of details; what has another form is kept as it came, since something came."""
    try:
        value = msgspec.json.decode(details)
    except DECODE_ERRORS:
        return ""
    if not isinstance(value, list):
        return _text(value) or ""
    found = [part.get("text") or part.get("summary") or part.get("data") for part in value if isinstance(part, dict)]
    return "".join(part for part in found if isinstance(part, str))


def mended(text: str) -> tuple[str, bool]:
    """Text that can be written down: halves of surrogate pairs and of characters are put together.

    They may have come in different chunks.

    Returns:
        the text, and whether something of it is lost (it has U+FFFD in its place).
    """
    if not _SURROGATES.search(text):
        return text, False
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    known = joined.count("\ufffd")
    joined = _ESCAPED_BYTES.sub(_from_bytes, joined)
    joined = _SURROGATES.sub("\ufffd", _LONE_HIGH.sub("\ufffd", joined))
    return joined, joined.count("\ufffd") > known


def _from_bytes(escaped: re.Match[str]) -> str:
    return escaped[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def server_times(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Queueing, prefill and decode time in seconds, from the ``metrics`` of the usage chunk."""

    def seconds(name: str) -> float | None:
        value = metrics.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
            return None
        return float(value) / 1e3 if math.isfinite(value) else None

    queue, prefill, decode_time = seconds("queue_time_ms"), seconds("prefill_time_ms"), seconds("decode_time_ms")
    first = seconds("time_to_first_token_ms")
    if prefill is None and first is not None and queue is not None:
        prefill = max(0.0, first - queue)
    return {"queue_s": queue, "prefill_s": prefill, "decode_s": decode_time}


def error_text(body: bytes) -> str:
    """The message of an error body, as OpenAI-compatible servers write it, or the start of whatever came."""
    try:
        value = msgspec.json.decode(body)
    except DECODE_ERRORS:
        return body[:MAX_ERROR_CHARS].decode("utf-8", "replace")
    for _ in range(4):
        if not isinstance(value, dict):
            break
        value = next(filter(None, map(value.get, _WORDS)), str(value))
    try:
        return (value if isinstance(value, str) else str(value))[:MAX_ERROR_CHARS]
    except DECODE_ERRORS:
        return body[:MAX_ERROR_CHARS].decode("utf-8", "replace")
