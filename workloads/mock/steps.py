"""What the mock server does for a request, step by step, and the HTTP around it."""

import json
from enum import IntEnum
from typing import Any

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: kvload-mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
CLOSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: kvload-mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"connection: close\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Action(IntEnum):
    """What happens to the connection after a step's bytes."""

    NONE = 0
    TOKENS = 1
    FINISH = 2
    CLOSE = 3
    RESET = 4
    STALL = 5


Step = tuple[int, bytes, int]
"""Nanoseconds after the former step, bytes to write, and the :class:`Action`."""


def http_chunk(payload: bytes) -> bytes:
    """One chunk of HTTP/1.1 chunked transfer (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def json_response(status: str, value: Any, *, raw: bytes | None = None, kind: str = "application/json") -> bytes:
    """A whole response with a content length."""
    body = json.dumps(value).encode() if raw is None else raw
    head = f"HTTP/1.1 {status}\r\nserver: kvload-mock\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def error_response(status: str, message: str) -> bytes:
    """An error as OpenAI-compatible servers give it."""
    code = int(status.split(maxsplit=1)[0])
    return json_response(status, {"error": {"message": message, "type": "BadRequestError", "code": code}})
