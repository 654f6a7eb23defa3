"""What every step computed and how long it took, so that predictions of a server's speed can be held against it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from kvload.errors import ServerError, UsageError
from kvload.servers.embedded.core.scheduler import Chunk
from kvload.servers.embedded.core.sequence import Sequence as Request

FLUSH_EVERY_S = 1.0


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step.

    Attributes:
        t: when it began, wall-clock Unix seconds.
        s: seconds from its first chunk being chosen to its tokens being sampled.
        decode: sequences with one generated token to compute.
        context: tokens that those had stored before, summed.
        prefill: parts of prompts, as ``(tokens, tokens stored before)``.
        waiting: requests without a place while it ran.
    """

    t: float
    s: float
    decode: int
    context: int
    prefill: tuple[tuple[int, int], ...] = ()
    waiting: int = 0


class StepSink(Protocol):
    """Where steps go."""

    def add(self, chunks: Sequence[Chunk[Request]], began_s: float, took_s: float, waiting: int) -> None:
        """Note a step."""


class StepLog:
    """Steps as JSON lines, a line each, flushed once a second.

    Args:
        path: a new file, or one that is continued.

    Raises:
        ServerError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = path.open("ab", buffering=1 << 16)
        except OSError as error:
            raise ServerError(f"the step log cannot be written: {error.strerror}", where=str(path)) from error
        self._encoder = msgspec.json.Encoder()
        self._flushed_s = 0.0

    def add(self, chunks: Sequence[Chunk[Request]], began_s: float, took_s: float, waiting: int) -> None:
        """Note a step.

        Args:
            chunks: what it computed.
            began_s: Unix seconds.
            took_s: its duration.
            waiting: requests without a place.
        """
        decodes = [chunk for chunk in chunks if chunk.count == 1 and chunk.start > 0]
        prefill = tuple((chunk.count, chunk.start) for chunk in chunks if chunk.count > 1 or chunk.start == 0)
        row = Step(began_s, round(took_s, 7), len(decodes), sum(c.start for c in decodes), prefill, waiting)
        self._file.write(self._encoder.encode(row) + b"\n")
        now = time.monotonic()
        if now - self._flushed_s > FLUSH_EVERY_S:
            self._flushed_s = now
            self._file.flush()

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def read_steps(path: Path) -> list[Step]:
    """A step log; a last line that was cut off is left out.

    Raises:
        UsageError: it cannot be read, or a line before the last is no step.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UsageError(f"the step log cannot be read: {error.strerror}", where=str(path)) from error
    decoder = msgspec.json.Decoder(Step)
    steps = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            steps.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            raise UsageError(f"line {number} is no step: {error}", where=str(path)) from error
    return steps
