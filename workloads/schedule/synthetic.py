"""Traces made from nothing but a seed: long-tailed lengths, arrivals of a given rate, sessions; scored questions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvload.errors import UsageError
from kvload.workloads.schedule.arrivals import ArrivalSpec, Floats, offsets, uniforms
from kvload.workloads.traces.trace import TraceRequest

ARRIVAL_DIGITS = 6
"""Arrivals of made-up traces are whole microseconds."""

INPUT_SPREAD, OUTPUT_SPREAD = 0.9, 0.6
"""Standard deviation of the logarithm of prompt and answer lengths."""


@dataclass(frozen=True)
class SyntheticSpec:
    """What to make.

    Attributes:
        requests: how many in all.
        rate: arrivals per second; of conversations, where there are sessions.
        burstiness: 1 is Poisson, below comes in bursts (see :class:`ArrivalSpec`).
        input_mean, output_mean: mean lengths in tokens of a lognormal distribution.
        input_max, output_max: lengths are cut to these.
        sessions: spread the requests over so many conversations; 0 makes single requests.
        think_mean_s: mean pause before a later turn, exponentially distributed.
        seed: the same seed makes the same trace everywhere.
    """

    requests: int = 100
    rate: float = 4.0
    burstiness: float = 1.0
    input_mean: float = 512.0
    output_mean: float = 128.0
    input_max: int = 8192
    output_max: int = 2048
    sessions: int = 0
    think_mean_s: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise UsageError(f"a trace of {self.requests} requests is empty", where="--requests")
        if not 0 <= self.sessions <= self.requests:
            raise UsageError(f"{self.requests} requests do not make {self.sessions} sessions", where="--sessions")
        for name in ("input_mean", "output_mean", "input_max", "output_max"):
            if not getattr(self, name) >= 1:
                raise UsageError(
                    f"{getattr(self, name)} is not a length of 1 or more", where=f"--{name.replace('_', '-')}"
                )
        if not 0 <= self.think_mean_s < math.inf:
            raise UsageError(f"{self.think_mean_s} is not a pause", where="--think")

    @property
    def arrivals(self) -> ArrivalSpec:
        """The process of the first turns."""
        return ArrivalSpec(kind="gamma", rate=self.rate, burstiness=self.burstiness, seed=self.seed)


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


def synthetic(spec: SyntheticSpec) -> Iterator[TraceRequest]:
    """A trace of lengths, conversations one after another in the order of their first turn."""
    conversations = spec.sessions or spec.requests
    arrivals = _arrivals(conversations, spec.arrivals)
    inputs = _lognormal(spec, "input", spec.input_mean, INPUT_SPREAD, spec.input_max)
    outputs = _lognormal(spec, "output", spec.output_mean, OUTPUT_SPREAD, spec.output_max)
    pauses = np.round(-np.log(uniforms(spec.seed, "think", spec.requests)) * spec.think_mean_s, 3)
    longer = spec.requests % conversations
    number = 0
    for conversation in range(conversations):
        for turn in range(spec.requests // conversations + (conversation < longer)):
            yield TraceRequest(
                id=f"s{spec.seed}-{number}",
                arrival=None if turn else float(arrivals[conversation]),
                input_length=int(inputs[number]),
                output_length=int(outputs[number]),
                session=f"s{spec.seed}-c{conversation}" if spec.sessions else None,
                turn=turn if spec.sessions else None,
                think_time=float(pauses[number]) if turn else None,
            )
            number += 1


def asked(questions: Iterable[Question], arrivals: ArrivalSpec) -> Iterator[TraceRequest]:
    """A trace that asks scored questions at the given times, in their order."""
    listed = list(questions)
    due = _arrivals(len(listed), arrivals)
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


def _arrivals(count: int, spec: ArrivalSpec) -> Floats:
    return np.round(offsets(np.zeros(count), spec), ARRIVAL_DIGITS)


def _lognormal(spec: SyntheticSpec, name: str, mean: float, spread: float, maximum: int) -> Floats:
    from scipy.special import ndtri

    normal = np.asarray(ndtri(uniforms(spec.seed, name, spec.requests)), dtype=np.float64)
    return np.clip(np.round(np.exp(math.log(mean) - spread**2 / 2 + spread * normal)), 1, maximum)
