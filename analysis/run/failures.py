"""Requests that did not end well: how many of each kind, and what the server said of the first."""

from collections.abc import Iterable
from dataclasses import dataclass

from kvload.analysis.records.table import RecordTable
from kvload.rundir import RunDir

LONGEST = 300
"""Characters of a server's words that are shown."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One kind of failure.

    Attributes:
        status, cause: as the records say.
        number: requests.
        example: the first of them.
        words: what the server, or the system, said of that one; None where it said nothing.
    """

    status: str
    cause: str | None
    number: int
    example: str
    words: str | None


def failures_of(runs: Iterable[tuple[RunDir, RecordTable]]) -> list[Failure]:
    """The failures of some runs, the most frequent first; requests that were never sent are none."""
    found: dict[tuple[str, str | None], Failure] = {}
    for run, table in runs:
        if not (table.sent & ~table.ok).any():
            continue
        for record, _ in run.records():
            if record.status in {"ok", "unsent"}:
                continue
            key = (record.status, record.cause)
            before = found.get(key)
            said = " ".join(record.error.split())[:LONGEST] if record.error else None
            found[key] = Failure(
                status=record.status,
                cause=record.cause,
                number=before.number + 1 if before else 1,
                example=before.example if before else record.request_id,
                words=(before.words if before else None) or said,
            )
    return sorted(found.values(), key=lambda failure: -failure.number)
