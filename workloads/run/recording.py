"""From a planned request and its answer to the record of it."""

from collections.abc import Sequence
from typing import Any

from kvload.records import RequestRecord
from kvload.workloads.client.answer import Answer
from kvload.workloads.schedule.request import PlannedRequest


def build_record(
    planned: PlannedRequest,
    answer: Answer,
    *,
    due_ns: int,
    zero_ns: int,
    worker: int = 0,
    servers: Sequence[str] = (),
    place: int = 0,
) -> RequestRecord:
    """The record of one request that was sent.

    Args:
        due_ns, zero_ns: when it was due, and the run's zero, on the monotonic clock.
        servers: the names of the manifest's servers, by position.
        place: of the server it was sent to; an answer that names another counts for that one.
    """

    def at(time_ns: int | None) -> float | None:
        return None if time_ns is None else (time_ns - zero_ns) / 1e9

    named = answer.server_name
    is_known = named is not None and named in servers
    return RequestRecord(
        **_planned_fields(planned, worker),
        **{name: getattr(answer, name) for name in _ANSWERED},
        server=servers.index(named) if named is not None and is_known else place,
        server_name=None if is_known else named,
        t_sched_s=(due_ns - zero_ns) / 1e9,
        t_send_s=at(answer.t_send_ns),
        t_headers_s=at(answer.t_headers_ns),
        t_first_s=at(answer.t_first_ns),
        t_answer_s=at(answer.t_answer_ns),
        t_last_s=at(answer.t_last_ns),
        t_end_s=at(answer.t_end_ns),
    )


def unsent_record(planned: PlannedRequest, cause: str, worker: int = 0) -> RequestRecord:
    """The record of a request that was never sent, and why."""
    return RequestRecord(**_planned_fields(planned, worker), t_sched_s=planned.offset_s, status="unsent", cause=cause)


def lost_record(planned: PlannedRequest, cause: str, worker: int, error: str) -> RequestRecord:
    """The record of a request that was sent, but what came of it is not known, and why."""
    return RequestRecord(
        **_planned_fields(planned, worker), t_sched_s=planned.offset_s, status="failed", cause=cause, error=error
    )


def _planned_fields(planned: PlannedRequest, worker: int) -> dict[str, Any]:
    return {"worker": worker, **{name: getattr(planned, name) for name in _PLANNED}}


_PLANNED = tuple(
    name for name in RequestRecord.__struct_fields__ if name in PlannedRequest.__struct_fields__ and name != "server"
)
_ANSWERED = tuple(
    name for name in RequestRecord.__struct_fields__ if name in Answer.__dataclass_fields__ and name != "server_name"
)
"""Fields that a record takes over as they are, from the plan and from the answer."""
