"""The options that say when requests are due, as one specification."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvload.workloads.schedule.arrivals import ArrivalSpec


def arrival_spec(
    kind: str | None,
    speed: float,
    rate: str | None,
    burstiness: float | None,
    ramp: str | None,
    concurrency: int | None,
    *,
    jitter: str,
    start: str,
    end: str | None,
    seed: int,
) -> "ArrivalSpec":
    """What ``--arrivals``, ``--speed``, ``--rate`` and so on mean together.

    Raises:
        UsageError: one does not parse, or they exclude each other.
    """
    from kvload.errors import UsageError
    from kvload.units import parse_duration, parse_rate
    from kvload.workloads.schedule.arrivals import ArrivalSpec, parse_ramps

    number = None if rate is None else parse_rate(rate, where="--rate")
    at_once = number == math.inf
    number = None if at_once else number
    if concurrency is not None or at_once:
        if kind is not None or number is not None or ramp is not None or speed != 1.0:
            raise UsageError("excludes all other choices of arrivals", where="--concurrency, --rate inf")
        kind = "once"
    elif kind is None:
        kind = "gamma" if burstiness is not None else "trace"
    spec: Any = {"kind": kind, "speed": speed, "rate": number, "burstiness": 1.0 if burstiness is None else burstiness}
    return ArrivalSpec(
        **spec,
        ramps=parse_ramps(ramp) if ramp else (),
        jitter_s=parse_duration(jitter, where="--jitter"),
        start_s=parse_duration(start, where="--start"),
        end_s=None if end is None else parse_duration(end, where="--end"),
        seed=seed,
    )
