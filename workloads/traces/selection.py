"""Which part of a trace is used: a stretch of its time, whole sessions drawn by seed, at most so many requests."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvload.errors import UsageError
from kvload.workloads.traces.trace import TraceRequest, continues_conversation


@dataclass(frozen=True)
class Selection:
    """What to take.

    Attributes:
        start_s, end_s: arrivals from (including) and to (excluding), in seconds of the trace; a slice in time keeps
            bursts and shared prefixes.
        sample: share of sessions to keep, 0 to 1, by a hash of ``seed`` and the session's name, so that the same ones
            are taken everywhere; a request without a session counts as one of its own.
        limit: at most so many requests.
    """

    start_s: float = 0.0
    end_s: float | None = None
    sample: float = 1.0
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise UsageError(f"a sample of {self.sample} is not a share above 0 and up to 1", where="--sample")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"a limit of {self.limit} requests leaves none", where="--limit")
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise UsageError(
                f"the part from {self.start_s} s to {self.end_s} s is empty", hint="check --start and --end"
            )


@dataclass
class SelectionCounts:
    """What a selection saw: ``rows`` read, and later turns left out since their conversation began outside the part."""

    rows: int = 0
    headless: int = 0
    kept_sessions: set[str] = field(default_factory=set, repr=False)


def select(requests: Iterator[TraceRequest], selection: Selection, counts: SelectionCounts) -> Iterator[TraceRequest]:
    """The requests that are taken, as a stream; stops reading where nothing more can come.

    A later turn without an arrival of its own is taken if the turn before it was.
    """
    taken = 0
    for request in requests:
        counts.rows += 1
        session = request.session
        continues = session is not None and session in counts.kept_sessions
        if request.arrival is not None:
            if selection.end_s is not None and request.arrival >= selection.end_s:
                if not counts.kept_sessions:
                    return
                continue
            if request.arrival < selection.start_s:
                continue
        elif session is not None and not continues and request.turn:
            counts.headless += is_drawn(session, selection)
            continue
        if not is_drawn(session if session is not None else request.id, selection):
            continue
        if request.turn and not continues and continues_conversation(request):
            counts.headless += 1
            continue
        if session is not None:
            counts.kept_sessions.add(session)
        yield request
        taken += 1
        if taken == selection.limit:
            return


def is_drawn(session: str, selection: Selection) -> bool:
    """Whether a session belongs to the sample."""
    if selection.sample >= 1:
        return True
    digest = hashlib.sha256(f"kvload/{selection.seed}/sample/{session}".encode()).digest()
    return int.from_bytes(digest[:8], "little") < selection.sample * 2.0**64
