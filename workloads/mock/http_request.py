"""HTTP as far as the mock server reads it."""

from dataclasses import dataclass

MAX_HEAD_BYTES = 1 << 16
MAX_BODY_BYTES = 1 << 28


class UnreadableRequestError(Exception):
    """It is no request that this server can read."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request.

    Attributes:
        path: without its query.
        key: its ``X-Request-Id``.
        close: the client asks that the connection be closed afterwards.
    """

    method: bytes
    path: bytes
    key: str
    close: bool
    body: bytes


def take_request(inbox: bytearray) -> HttpRequest | None:
    """Take the first request out of the bytes received; None as long as it has not come whole.

    Raises:
        UnreadableRequestError: it is none, or too large.
    """
    head_end = inbox.find(b"\r\n\r\n")
    if head_end < 0:
        if len(inbox) > MAX_HEAD_BYTES:
            raise UnreadableRequestError
        return None
    start_line, *header_lines = bytes(inbox[:head_end]).split(b"\r\n")
    headers = {}
    for line in header_lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    length_text = headers.get(b"content-length", b"0")
    words = start_line.split(b" ")
    if not length_text.isdigit() or len(length_text) > 18 or len(words) != 3 or int(length_text) > MAX_BODY_BYTES:
        raise UnreadableRequestError
    body_start = head_end + 4
    body_end = body_start + int(length_text)
    if len(inbox) < body_end:
        return None
    body = bytes(inbox[body_start:body_end])
    del inbox[:body_end]
    return HttpRequest(
        method=words[0],
        path=words[1].split(b"?")[0],
        key=headers.get(b"x-request-id", b"").decode("latin-1"),
        close=headers.get(b"connection", b"").lower() == b"close",
        body=body,
    )
