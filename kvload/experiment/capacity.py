"""What one running server carries: attempts at rate after rate, and the curve they give."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvload.errors import UsageError
from kvload.experiment.ending import error_of
from kvload.experiment.options import ReplayOptions
from kvload.experiment.replay import Listener, replay_once
from kvload.experiment.sweep_plan import needed

if TYPE_CHECKING:
    from kvload.analysis.sweep.model import Point, Sweep

WARM_UP_S = 30.0
"""The least of a run that does not count (see :mod:`kvload.analysis.sweep.points`)."""

HELD_S = 60.0
"""A rate is kept up for so long beside the warm-up, where the trace has the requests for it."""


@dataclass(frozen=True, kw_only=True)
class CapacityPlan:
    """A search.

    Attributes:
        options: of every attempt; rate, seed, limit and folder are the search's own.
        rows: requests in the trace.
        out: folder of the attempts' runs.
        target: share of sent requests that must meet all limits.
        start_rps, tolerance, most: the first rate, how closely the capacity is to be known, most attempts.
        burstiness: shape of the gamma gaps between arrivals.
        warm_up_s: requests due before this time do not count; where None, the longer of 30 s and five answers.
    """

    options: ReplayOptions
    rows: int
    out: Path
    target: float
    start_rps: float
    tolerance: float
    most: int
    burstiness: float = 1.0
    warm_up_s: float | None = None

    @property
    def available(self) -> int:
        """Requests that an attempt can have."""
        return min(self.rows, self.options.run.schedule.limit or self.rows)

    def requests_at(self, rate_rps: float) -> int:
        """Requests of an attempt: the warm-up's, and enough beside them to show the target and to keep the rate up."""
        wanted = max(needed(self.target), math.ceil(rate_rps * HELD_S)) + math.ceil(rate_rps * self.least_warm_up_s)
        return min(wanted, self.available)

    @property
    def least_warm_up_s(self) -> float:
        """The least time at an attempt's begin that does not count."""
        return WARM_UP_S if self.warm_up_s is None else self.warm_up_s

    def check(self) -> str:
        """What an attempt needs, in a sentence, before anything is sent.

        Raises:
            UsageError: the trace or the limit is too short to show the target at any rate.
        """
        least = needed(self.target)
        if self.available < least:
            short = f"--limit {self.available}" if self.available < self.rows else f"the trace's {self.rows}"
            raise UsageError(
                f"a target of {self.target:.4g} takes at least {least} requests an attempt to show, and {short} are"
                " fewer",
                where="TRACE",
                hint="take a longer trace (kvload traces sample --requests N), or a lower --target:"
                f" 0.9 takes {needed(0.9)}",
            )
        longer = " (or five answers, where these take longer)" if self.warm_up_s is None else ""
        return (
            f"a target of {self.target:.4g} takes at least {least} requests in every attempt, beside those of its first"
            f" {self.least_warm_up_s:g} s{longer}, which find an emptier server and do not count"
        )


@dataclass(frozen=True)
class CapacityWatcher:
    """Who is told how a search goes on: an attempt begins (rate, number, requests), and what it came to."""

    on_attempt: Callable[[float, int, int], None] = lambda _rate, _number, _requests: None
    on_point: "Callable[[Point], None]" = lambda _point: None
    listener: Listener = field(default_factory=Listener)


def find(plan: CapacityPlan, watcher: CapacityWatcher) -> "Sweep":
    """Search, and return the curve of all attempts.

    Every attempt draws its arrivals and made-up prompts anew, so that a rate tried twice is two samples of it.

    Raises:
        KeyboardInterrupt: the user stopped an attempt.
        ServerError: an attempt did not come to its end.
        UsageError: the trace is too short, or no limits were given on single requests.
    """
    from kvload.analysis.run.capacity import next_rate

    points: list[Point] = []
    while len(points) < plan.most:
        made = [(point.level, point.sent, point.met) for point in points]
        rate = next_rate(made, start_rps=plan.start_rps, target=plan.target, tolerance=plan.tolerance)
        if rate is None:
            break
        watcher.on_attempt(rate, len(points), plan.requests_at(rate))
        point = _attempt(plan, rate, len(points), watcher.listener)
        watcher.on_point(point)
        points.append(point)
    return _curve(plan, points)


def _attempt(plan: CapacityPlan, rate: float, number: int, listener: Listener) -> "Point":
    from kvload.analysis.sweep.points import point_of

    shared = plan.options.run
    seed = shared.schedule.seed + number
    due = replace(shared.schedule.arrivals, kind="gamma", rate=rate, burstiness=plan.burstiness, seed=seed)
    schedule = replace(shared.schedule, arrivals=due, seed=seed, limit=plan.requests_at(rate))
    options = replace(
        plan.options,
        run=replace(shared, schedule=schedule),
        repeat=number,
        out=plan.out / "runs" / f"{number:02d}-rate-{rate:.4g}",
    )
    run = replay_once(options, listener)
    manifest = run.manifest()
    if manifest.ended == "interrupted":
        raise KeyboardInterrupt
    if manifest.partial and (error := error_of(manifest, where=str(run.path))) is not None:
        raise error
    return point_of(run, rate, warm_up_s=plan.warm_up_s)


def _curve(plan: CapacityPlan, points: "list[Point]") -> "Sweep":
    from kvload.analysis.sweep.curve import curves_of
    from kvload.analysis.sweep.model import Sweep
    from kvload.rundir import RunDir

    manifest = RunDir.open(plan.out / "runs" / points[0].run).manifest()
    name = points[0].arm
    curves, dispersion = curves_of(
        [replace(point, arm=name) for point in points],
        [name],
        axis="rate",
        baseline=name,
        target=plan.target,
        servers={name: manifest.server},
        seed=plan.options.run.schedule.seed,
    )
    short = sorted({point.level for point in points if point.sent < needed(plan.target)})
    notes = [
        f"at {level:.3g}/s the trace left fewer requests after the warm-up than the target takes to show"
        for level in short
    ]
    return Sweep(
        axis="rate",
        trace=manifest.trace,
        mode=manifest.mode,
        limits_s=dict(manifest.slo),
        target=plan.target,
        repeats=1,
        curves=curves,
        dispersion=dispersion,
        started_at=manifest.started_at,
        notes=tuple(notes),
    )
