"""How a run went, for whoever has to go on: its exit status, and the error it amounts to."""

from collections.abc import Sequence

from kvload.errors import InternalError, KvloadError, MachineError, ServerError
from kvload.records import FailureKind, RunManifest

ALLOWED_FAILURES = 0.05
"""Share of the requests sent that may fail before a run says nothing about the server's answers."""

_FAULTS: dict[str | None, type[KvloadError]] = {"machine": MachineError, "kvload": InternalError}
_SHOWN = 3
_SHOWN_CHARS = 160


def failed(manifest: RunManifest) -> int:
    """Requests that were sent and failed, timed out or were refused, without those cut off by the run's end."""
    return sum(kind.count for kind in manifest.failures if kind.status in {"failed", "timeout", "refused"})


def answered(manifest: RunManifest) -> int:
    """Requests that were answered whole."""
    return (manifest.sent or 0) - sum(kind.count for kind in manifest.failures if kind.status != "unsent")


def error_of(
    manifest: RunManifest, *, allowed: float = ALLOWED_FAILURES, where: str | None = None
) -> KvloadError | None:
    """What is wrong with a run, None if nothing is: it did not come to its end, or its requests failed.

    Args:
        allowed: share of the requests sent that may fail.
        where: the run folder.
    """
    if manifest.partial:
        kind = _FAULTS.get(manifest.fault, ServerError)
        return kind(f"the run did not come to its end: {manifest.ended or 'it was not completed'}", where=where)
    bad, sent = failed(manifest), manifest.sent or 0
    if not bad or bad <= allowed * sent:
        return None
    what = "nothing was answered" if bad == sent else f"{bad} of {sent} requests were not answered"
    reasons = [kind for kind in manifest.failures if kind.status in {"failed", "timeout", "refused"}]
    return ServerError(
        f"{what}: {causes(reasons)}",
        where=where,
        hint=None if bad == sent else "allow that with --allow-failures SHARE",
    )


def causes(kinds: Sequence[FailureKind]) -> str:
    """The ways in which requests ended, each with what the first of them was told."""
    parts = []
    for kind in kinds[:_SHOWN]:
        said = f" ({kind.first[:_SHOWN_CHARS]!r})" if kind.first else ""
        parts.append(f"{kind.count} x {kind.cause or kind.status}{said}")
    more = len(kinds) - _SHOWN
    return "; ".join(parts) + (f"; and {more} other ways" if more > 0 else "")
