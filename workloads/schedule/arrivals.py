"""When requests arrive: absolute offsets, computed once for the whole schedule.

Workers never draw gaps of their own: every random number here comes from one stream named by the seed, and is made from
raw bits by an inverse distribution function, so that every process, machine and library version gets the same offsets.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kvload.errors import TraceError, UsageError
from kvload.units import parse_duration, parse_rate

Kind = Literal["trace", "constant", "poisson", "gamma", "once"]
Floats = npt.NDArray[np.float64]

_OFFSET_DIGITS = 9
_RAMP = re.compile(r"(?P<start>[0-9.e]+)(?:-(?P<end>[0-9.e]+))?/(?P<duration>.+)", re.ASCII)


@dataclass(frozen=True)
class Ramp:
    """A stretch of ``duration_s`` seconds over which the rate goes linearly from one figure to another (requests/s)."""

    duration_s: float
    start_rate: float
    end_rate: float


@dataclass(frozen=True)
class ArrivalSpec:
    """How offsets are made.

    Attributes:
        kind: ``trace`` keeps the recorded pattern; ``constant``, ``poisson`` and ``gamma`` make a new one; ``once``
            makes all requests due at 0, for a run whose pace is set by a limit on concurrency.
        speed: divides the recorded times (kind ``trace`` only); 2 is twice as fast.
        rate: mean requests per second; kind ``trace`` is then sped up or slowed down to it.
        burstiness: shape of kind ``gamma``, as vLLM's ``--burstiness``: the gaps' coefficient of variation is
            ``burstiness ** -0.5``; 1 is Poisson, below 1 comes in bursts.
        ramps: the rate over time, in place of ``rate``; after the last ramp its final rate goes on.
        jitter_s: adds up to so many seconds (of the trace's own time) to every recorded arrival, for traces whose clock
            is coarse.
        start_s, end_s: the part of the trace that is used, in its own seconds; it starts at 0 again.
        seed: names the random stream.

    Raises:
        UsageError: the values do not make a schedule.
    """

    kind: Kind = "trace"
    speed: float = 1.0
    rate: float | None = None
    burstiness: float = 1.0
    ramps: tuple[Ramp, ...] = ()
    jitter_s: float = 0.0
    start_s: float = 0.0
    end_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"no such kind of arrivals: '{self.kind}'", hint=f"known: {', '.join(get_args(Kind))}")
        positive = {"speed": self.speed, "rate": self.rate, "burstiness": self.burstiness}
        for name, value in positive.items():
            if value is not None and not (0 < value < float("inf")):
                raise UsageError(f"{name} {value} is not above 0", where="arrivals")
        if self.ramps and self.rate is not None:
            raise UsageError("a rate and ramps exclude each other", where="arrivals")
        if self.kind == "once" and (self.rate is not None or self.ramps):
            raise UsageError("a rate and arrivals all at once exclude each other", where="arrivals")
        if self.kind not in {"trace", "once"} and self.rate is None and not self.ramps:
            raise UsageError(f"arrivals of kind '{self.kind}' need a rate", hint="give --rate")
        if self.speed != 1.0 and (self.kind != "trace" or self.rate is not None or self.ramps):
            raise UsageError("a speed and a rate exclude each other", where="arrivals")
        if not 0 <= self.jitter_s < float("inf") or (self.jitter_s and self.kind != "trace"):
            raise UsageError(f"jitter of {self.jitter_s} s cannot be added to arrivals of kind '{self.kind}'")
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise UsageError(
                f"the part from {self.start_s} s to {self.end_s} s is empty", hint="check --start and --end"
            )

    def as_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, and the kind: for a run's manifest."""
        found: dict[str, Any] = {"kind": self.kind}
        for name, default in ArrivalSpec.__dataclass_fields__.items():
            value = getattr(self, name)
            if name not in {"kind", "ramps"} and value != default.default:
                found[name] = value
        if self.ramps:
            found["ramps"] = [[ramp.duration_s, ramp.start_rate, ramp.end_rate] for ramp in self.ramps]
        return found


def parse_ramps(text: str) -> tuple[Ramp, ...]:
    """Ramps from ``1-8/60s,8/2m``: from 1 to 8 requests/s over a minute, then 8 for two.

    Raises:
        UsageError: the text does not have that form.
    """
    ramps = []
    for part in text.split(","):
        match = _RAMP.fullmatch(part.strip())
        try:
            if not match:
                raise ValueError
            start = parse_rate(match["start"], where="--ramp", may_be_zero=True)
            end = parse_rate(match["end"], where="--ramp", may_be_zero=True) if match["end"] else start
            duration = parse_duration(match["duration"], where="--ramp")
            if duration <= 0:
                raise ValueError
        except ValueError:
            raise UsageError(
                f"'{part}' is not a ramp", hint="write FROM-TO/DURATION or RATE/DURATION: 1-8/60s"
            ) from None
        ramps.append(Ramp(duration, start, end))
    return tuple(ramps)


def offsets(recorded: npt.ArrayLike, spec: ArrivalSpec) -> Floats:
    """Absolute offsets in seconds of requests in their recorded order, the first at 0, never decreasing.

    Args:
        recorded: arrivals in the trace's seconds, non-decreasing, shape (n,), of the part between ``start_s`` and
            ``end_s`` already; only their number counts where the kind is not ``trace``. NaN where the trace has no
            times.

    Raises:
        TraceError: the kind is ``trace`` and the trace has no times, or all the same where a rate is asked for.
        UsageError: the ramps end at rate 0 before all requests have arrived.
    """
    times = np.asarray(recorded, dtype=np.float64)
    if times.ndim != 1:
        raise ValueError(f"arrivals of shape {times.shape}, not (n,)")
    if len(times) == 0:
        return times.copy()
    if spec.kind == "once":
        return np.zeros_like(times)
    if spec.kind == "trace":
        found = _recorded(times, spec)
    elif spec.ramps:
        found = _through_ramps(_unit_process(len(times), spec), spec.ramps)
    else:
        found = _unit_process(len(times), spec) / _rate(spec)
    return np.round(found, _OFFSET_DIGITS)


def uniforms(seed: int, name: str, count: int) -> Floats:
    """``count`` numbers in (0, 1) of the random stream that ``seed`` and ``name`` stand for, shape (count,)."""
    key = int.from_bytes(hashlib.sha256(f"kvload/{seed}/{name}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(count)
    return (np.asarray(raw >> np.uint64(12), dtype=np.float64) + 0.5) * 2.0**-52


def _recorded(times: Floats, spec: ArrivalSpec) -> Floats:
    if np.isnan(times).any():
        raise TraceError(
            "the trace has no arrival times", hint="give a --rate and a kind of arrivals: poisson, constant"
        )
    if np.any(np.diff(times) < 0):
        raise ValueError("arrivals decrease")
    times = times - times[0]
    if spec.jitter_s:
        # Sorted times go to the requests in their old order: a request never overtakes another one.
        times = np.sort(times + spec.jitter_s * uniforms(spec.seed, "jitter", len(times)))
        times -= times[0]
    if spec.rate is None and not spec.ramps:
        return times / spec.speed
    span = times[-1]
    if len(times) > 1 and span == 0:
        raise TraceError("all requests arrive at once: there is no rate to change", hint="use --arrivals poisson")
    unit = times * ((len(times) - 1) / span) if span else times
    return _through_ramps(unit, spec.ramps) if spec.ramps else unit / _rate(spec)


def _rate(spec: ArrivalSpec) -> float:
    if spec.rate is None:
        raise ValueError("no rate")
    return spec.rate


def _unit_process(count: int, spec: ArrivalSpec) -> Floats:
    """Arrivals of mean rate 1, the first at 0."""
    if spec.kind == "constant":
        return np.arange(count, dtype=np.float64)
    draws = uniforms(spec.seed, "gaps", count - 1)
    if spec.kind == "poisson" or spec.burstiness == 1.0:
        gaps = -np.log1p(-draws)
    else:
        from scipy.special import gammaincinv

        gaps = np.asarray(gammaincinv(spec.burstiness, draws), dtype=np.float64) / spec.burstiness
    return np.concatenate([[0.0], np.cumsum(gaps)])


def _through_ramps(unit: Floats, ramps: tuple[Ramp, ...]) -> Floats:
    """Times at which the integral of the rate reaches the values of ``unit`` (time change of a unit-rate process)."""
    found = np.empty_like(unit)
    done_s = reached = 0.0
    first = 0
    for ramp in ramps:
        area = 0.5 * (ramp.start_rate + ramp.end_rate) * ramp.duration_s
        last = int(np.searchsorted(unit, reached + area, side="right"))
        slope = (ramp.end_rate - ramp.start_rate) / ramp.duration_s
        wanted = unit[first:last] - reached
        # start*t + slope*t^2/2 = wanted, solved without loss of digits for small slopes; 0/0 only where wanted is 0
        root = ramp.start_rate + np.sqrt(np.maximum(ramp.start_rate**2 + 2 * slope * wanted, 0.0))
        found[first:last] = done_s + np.divide(2 * wanted, root, out=np.zeros_like(wanted), where=root > 0)
        first, done_s, reached = last, done_s + ramp.duration_s, reached + area
    if first < len(unit):
        rate = ramps[-1].end_rate
        if rate <= 0:
            raise UsageError(
                f"the ramps end at rate 0 after {first} of {len(unit)} requests", hint="end at a rate, or use --limit"
            )
        found[first:] = done_s + (unit[first:] - reached) / rate
    first_s: float = found[0]
    return found - first_s
