"""From a planned request and its answer to the record of it."""

from typing import Any

from kvload.records import RequestRecord
from kvload.workloads.client.answer import Answer
from kvload.workloads.schedule.request import PlannedRequest


def build_record(
    planned: PlannedRequest, answer: Answer, *, due_ns: int, zero_ns: int, worker: int = 0
) -> RequestRecord:
    """The record of one request that was sent.

    Args:
        due_ns, zero_ns: when it was due, and the run's zero, on the monotonic clock.
    """

    def at(time_ns: int | None) -> float | None:
        return None if time_ns is None else (time_ns - zero_ns) / 1e9

    return RequestRecord(
        **_planned_fields(planned, worker),
        t_sched_s=(due_ns - zero_ns) / 1e9,
        status=answer.status,
        prompt_tokens=answer.prompt_tokens,
        t_send_s=at(answer.t_send_ns),
        t_headers_s=at(answer.t_headers_ns),
        t_first_s=at(answer.t_first_ns),
        t_answer_s=at(answer.t_answer_ns),
        t_last_s=at(answer.t_last_ns),
        t_end_s=at(answer.t_end_ns),
        output_tokens=answer.output_tokens,
        output_tokens_source=answer.output_tokens_source,
        first_chunk_tokens=answer.first_chunk_tokens,
        end_tokens=answer.end_tokens,
        reasoning_tokens=answer.reasoning_tokens,
        count_doubt=answer.count_doubt,
        in_bursts=answer.in_bursts,
        damaged=answer.damaged,
        chunk_tick_us=answer.chunk_tick_us,
        finish_reason=answer.finish_reason,
        cause=answer.cause,
        error=answer.error,
        http_status=answer.http_status,
        retries=answer.retries,
        clock=answer.clock,
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        token_ids=answer.token_ids,
        queue_s=answer.queue_s,
        prefill_s=answer.prefill_s,
        decode_s=answer.decode_s,
    )


def unsent_record(planned: PlannedRequest, cause: str, worker: int = 0) -> RequestRecord:
    """The record of a request that was never sent, and why."""
    return RequestRecord(**_planned_fields(planned, worker), t_sched_s=planned.offset_s, status="unsent", cause=cause)


def lost_record(planned: PlannedRequest, cause: str, worker: int, error: str) -> RequestRecord:
    """The record of a request that was under way in a worker that died: what came of it is not known."""
    return RequestRecord(
        **_planned_fields(planned, worker), t_sched_s=planned.offset_s, status="failed", cause=cause, error=error
    )


def _planned_fields(planned: PlannedRequest, worker: int) -> dict[str, Any]:
    return {
        "index": planned.index,
        "request_id": planned.request_id,
        "prompt_digest": planned.prompt_digest,
        "max_tokens": planned.max_tokens,
        "worker": worker,
        "session": planned.session,
        "turn": planned.turn,
        "task": planned.task,
        "input_tokens": planned.input_tokens,
        "min_tokens": planned.min_tokens,
        "ignore_eos": planned.ignore_eos,
        "temperature": planned.temperature,
        "top_p": planned.top_p,
        "seed": planned.seed,
        "expected": planned.expected,
        "scorer": planned.scorer,
    }
