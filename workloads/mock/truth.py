"""The mock server's own account of every request: what the client's figures are checked against."""

from collections.abc import Iterator
from pathlib import Path

import msgspec


class TrueAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request as the mock server saw it; all times in nanoseconds of ``CLOCK_MONOTONIC``.

    Attributes:
        request_id: the request's ``X-Request-Id``.
        arrival_ns: when its last byte arrived (the kernel's receive timestamp).
        writes_ns: when each token chunk was handed to the kernel.
        end_ns: when the answer was over: just before its last bytes were handed to the kernel.
        tokens: tokens written.
        fault: the fault that struck it.
        whole: the answer was written to its end.
    """

    request_id: str
    arrival_ns: int
    end_ns: int
    writes_ns: list[int] = []
    tokens: int = 0
    fault: str | None = None
    whole: bool = True


def read_truth(path: Path) -> Iterator[TrueAnswer]:
    """The answers in a mock server's log; a last line still being written is left out."""
    decoder = msgspec.json.Decoder(TrueAnswer)
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decoder.decode(line)
