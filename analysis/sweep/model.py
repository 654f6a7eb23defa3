"""What a sweep found: one object, which every renderer only formats.

Times are seconds. A value that was not measured is None.
"""

from dataclasses import dataclass, field
from typing import Literal

from kvload.analysis.statistics.estimates import Estimate
from kvload.records import ServerInfo, TraceInfo

Axis = Literal["rate", "concurrency"]
"""What is raised: requests a second that are sent, or requests in flight (closed loop)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One replay: an arm at one level of load.

    Attributes:
        level: requests a second, or requests in flight.
        run: the run's folder, for its own report.
        sent, met: requests sent that count, and how many of them met all limits.
        stretches: the same of equal stretches of the run, one after the other.
        warm_up: requests sent before these, which found an emptier server than it is in service and do not count.
        kept_pace: the rate of sending over the rate that was intended, from first to last arrival.
        answered_rps: requests answered a second over the whole run, its last answers included.
        output_tokens_per_s: output tokens of answered requests over the whole run.
        good_tokens: output tokens of the requests that met all limits.
        ttft_s, tpot_s, e2e_s: percentiles by percent.
        cache_usage: the pool's greatest use, 0 to 1.
        client_bound: whether the client itself was the limit; None where that cannot be judged.
    """

    arm: str
    level: float
    repeat: int
    run: str
    sent: int
    met: int
    kept_pace: float | None
    answered_rps: float | None
    output_tokens_per_s: float | None
    good_tokens: float
    ttft_s: dict[float, float | None]
    tpot_s: dict[float, float | None]
    e2e_s: dict[float, float | None]
    duration_s: float | None
    cache_usage: float | None = None
    preemptions: float | None = None
    client_bound: bool | None = None
    stretches: tuple[tuple[int, int], ...] = ()
    warm_up: int = 0


@dataclass(frozen=True, kw_only=True)
class Level:
    """All repeats of an arm at one level of load.

    Attributes:
        share: requests that met all limits, out of those sent.
        sent_rps: requests sent a second: the level where the client kept pace, requests answered in a closed loop.
        goodput_rps: the share of that rate, with the share's interval.
        good_tokens_per_s: output tokens a second in requests that met all limits, over the arrivals' window.
        points: one a repeat.
    """

    level: float
    share: Estimate
    goodput_rps: Estimate
    sent_rps: float | None
    good_tokens_per_s: float | None
    output_tokens_per_s: float | None
    ttft_s: dict[float, float | None]
    tpot_s: dict[float, float | None]
    e2e_s: dict[float, float | None]
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One arm over all levels it was tried at.

    Attributes:
        capacity: the level up to which the target share of requests meets the limits; its ends are None where no level
            tried bounds it.
        met_at, missed_at: the highest level at which attainment (made to fall with the level) reaches the target, and
            the next one tried.
        ratio: capacity over the baseline's; None for the baseline.
        best: the level with the greatest goodput.
        cost_per_million: price of a million output tokens within the limits, at ``met_at``.
        failed: why the arm could not be measured to its end.
    """

    arm: str
    baseline: bool
    server: ServerInfo | None
    levels: tuple[Level, ...]
    capacity: Estimate
    met_at: float | None
    missed_at: float | None
    ratio: Estimate | None
    best: Level | None
    cost_per_million: float | None = None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Everything that is said about a sweep.

    Attributes:
        target: share of sent requests that must meet all limits.
        repeats: walks of each arm.
        dispersion: how much more equal runs differ than counting alone explains (variance ratio, at least 1); None
            where no level was run twice.
        gpu_hours: time of all runs and launches, times the GPUs; None where there is no GPU.
        price_per_gpu_hour: as the user gave it.
    """

    axis: Axis
    trace: TraceInfo
    mode: str
    limits_s: dict[str, float]
    target: float
    repeats: int
    curves: tuple[Curve, ...]
    dispersion: float | None
    started_at: float | None = None
    command: str | None = None
    gpus: int | None = None
    gpu_hours: float | None = None
    price_per_gpu_hour: float | None = None
    notes: tuple[str, ...] = field(default=())
