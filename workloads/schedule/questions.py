"""Scored questions as traces."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from kvload.workloads.schedule.arrivals import ArrivalSpec
from kvload.workloads.schedule.synthetic import arrival_times
from kvload.workloads.traces.trace import TraceRequest


class Question(Protocol):
    """A scored question, as a task generator makes them."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def messages(self) -> Sequence[dict[str, str]]: ...
    @property
    def expected(self) -> str: ...
    @property
    def scorer(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def depth(self) -> float | None: ...


def asked(questions: Iterable[Question], arrivals: ArrivalSpec) -> Iterator[TraceRequest]:
    """A trace that asks scored questions at the given times, in their order."""
    listed = list(questions)
    due = arrival_times(len(listed), arrivals)
    for question, arrival in zip(listed, due, strict=True):
        extra: dict[str, Any] = {"context_tokens": question.context_tokens}
        if question.depth is not None:
            extra["depth"] = question.depth
        yield TraceRequest(
            id=question.id,
            arrival=float(arrival),
            messages=[dict(message) for message in question.messages],
            max_tokens=question.max_tokens,
            expected=question.expected,
            scorer=question.scorer,
            task=question.task,
            extra=extra,
        )


def interleaved(groups: Sequence[Sequence[Question]], count: int) -> list[Question]:
    """The first ``count`` questions, taking one of each group in turn."""
    return [question for row in zip(*groups, strict=True) for question in row][:count]
