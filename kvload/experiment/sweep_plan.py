"""The plan of a sweep: what is swept, which load comes next, and where everything lies in its folder."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from kvload.errors import RunDirError, UsageError
from kvload.experiment.options import RunOptions
from kvload.experiment.plan import Arm
from kvload.private import make_folder, write_bytes
from kvload.servers.engines.base import LaunchRequest

if TYPE_CHECKING:
    from kvload.analysis.sweep.model import Point

PLAN_NAME = "sweep.json"
GONE = 0.1
"""Below this attainment nothing is left to be seen at higher loads: a walk stops."""

AUTO_LEVELS = 8
"""Levels a search is expected to take, for the estimate of its time alone."""

REQUESTS_IN_FLIGHT = 16
"""A closed loop sends at least so many requests for each one in flight: the first of each are an empty server's."""


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides the outcome of a sweep.

    Attributes:
        trace, trace_sha256, rows: the trace's path as given, its content's digest, and how many requests it has.
        axis: what is raised: the rate (requests a second) or the concurrency (closed loop).
        levels: the loads in rising order; empty for a search that starts at ``start`` and stops when capacity is known
            to ``tolerance``, or after ``most`` levels.
        target: share of sent requests that must meet the limits.
        duration_s: a rate is kept up for at least so long, where the trace has the requests for it.
        warm_up_s: requests of a rate's first seconds do not count, since they find an emptier server than it is in
            service; of a closed loop the first of every place in flight do not. 0 for none.
        burstiness: shape of the gamma gaps between arrivals; 1 is Poisson.
        launch, run: what all arms share, as in a comparison's plan.
        gpus, price_per_gpu_hour: GPUs of one server and their price, for the cost; None where nothing is to be said
            about it.
        spread: GPUs that walks are spread over, side by side; empty where one follows the other.
        place, place_address: where servers are started, see :func:`kvload.servers.launcher.place_of`.
    """

    trace: str
    trace_sha256: str
    rows: int
    arms: tuple[Arm, ...]
    axis: Literal["rate", "concurrency"]
    levels: tuple[float, ...] = ()
    start: float = 1.0
    tolerance: float = 0.1
    most: int = 12
    repeats: int = 1
    target: float = 0.9
    duration_s: float = 60.0
    warm_up_s: float = 0.0
    burstiness: float = 1.0
    launch: LaunchRequest = msgspec.field(default_factory=LaunchRequest)
    run: RunOptions = msgspec.field(default_factory=RunOptions)
    gpus: int | None = None
    price_per_gpu_hour: float | None = None
    spread: tuple[str, ...] = ()
    place: str = "local"
    place_address: str = "auto"
    command: str | None = None

    def walks(self) -> list[tuple[Arm, int]]:
        """Arms and repeats in the order they are walked: every repeat starts one arm later than the one before it."""
        found = []
        for repeat in range(self.repeats):
            turn = repeat % len(self.arms)
            found += [(arm, repeat) for arm in self.arms[turn:] + self.arms[:turn]]
        return found

    def requests_at(self, level: float) -> int:
        """How many requests are sent at a level of load: enough to prove the target, and to keep the load up."""
        held = level * (self.duration_s if self.axis == "rate" else REQUESTS_IN_FLIGHT)
        wanted = max(needed(self.target), math.ceil(held)) + self.warm_up_at(level)
        return min(wanted, self.run.schedule.limit or self.rows, self.rows)

    def warm_up_at(self, level: float) -> int:
        """How many of the requests at a level do not count, about."""
        if not self.warm_up_s:
            return 0
        return math.ceil(level * self.warm_up_s) if self.axis == "rate" else math.ceil(level)

    def span_s(self, level: float) -> float:
        """About how long sending takes at a level."""
        return self.requests_at(level) / level if self.axis == "rate" else self.duration_s

    def launch_s(self, arm: Arm) -> float:
        """About how long an arm's server takes to start."""
        from kvload.servers.engines.base import Adapter, known

        return 0.0 if arm.url else (known(self.launch.engine) or Adapter).start_estimate_s


def needed(target: float) -> int:
    """Requests that must all meet the limits before Wilson's 95 % interval lies above the target.

    >>> needed(0.99), needed(0.9)
    (381, 35)
    """
    z2 = 1.959964**2
    return math.ceil(z2 * target / (1 - target) - 1e-9) if target < 1 else 1


def check(plan: SweepPlan) -> None:
    """Find what cannot work before anything has run: too few requests, methods or settings the engine refuses.

    Raises:
        UsageError: the plan cannot be carried out.
    """
    least = min(plan.run.schedule.limit or plan.rows, plan.rows)
    if least < needed(plan.target):
        raise UsageError(
            f"{least} requests cannot prove a share of {plan.target:.3g}: it takes {needed(plan.target)} a load",
            where="--target",
            hint="use a longer trace, or a lower --target",
        )
    launched = [arm for arm in plan.arms if arm.method is not None]
    # what a cluster's nodes can do is told there: this machine may have neither the engine nor a GPU
    if launched and plan.place == "local":
        from kvload.servers.launcher import plan_for

        for arm in launched:
            plan_for(replace(plan.launch, method=arm.method or "none"))


def next_level(plan: SweepPlan, done: "list[Point]", first_walk: "list[float]") -> float | None:
    """The load to try next in one walk of one arm; None where the walk is over.

    Args:
        plan: the sweep.
        done: the walk's points so far.
        first_walk: the levels of the arm's first walk, which later ones of a search repeat; empty in the first.
    """
    from kvload.analysis.run.capacity import next_rate

    if not plan.levels and not first_walk:
        if len(done) >= plan.most:
            return None
        attempts = [(point.level, point.sent, point.met) for point in done]
        # Levels are tried again by the walks that repeat this one.
        found = next_rate(attempts, start_rps=plan.start, target=plan.target, tolerance=plan.tolerance, tries=1)
        if found is None:
            return None
        if plan.axis == "rate":
            return float(f"{found:.4g}")
        whole = float(max(round(found), 1))
        return None if any(point.level == whole for point in done) else whole
    tried = {point.level for point in done}
    if plan.levels and any(point.met < GONE * point.sent for point in done):
        return None
    return next((level for level in plan.levels or sorted(first_walk) if level not in tried), None)


def trace_copy(plan: SweepPlan, out: Path) -> Path:
    """The sweep's own copy of its trace."""
    return out / ("trace" + "".join(Path(plan.trace).suffixes[-2:]))


def run_path(out: Path, arm: Arm, level: float, repeat: int) -> Path:
    """The folder of one run within a sweep's folder."""
    slug = re.sub(r"[^A-Za-z0-9.=_-]+", "-", arm.name).strip("-")
    return out / "runs" / f"{slug}-at-{level:g}-r{repeat}"


def save(plan: SweepPlan, out: Path) -> None:
    """Keep the plan in the sweep's folder.

    Raises:
        UsageError: the folder holds something else already.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError("the folder is not empty", where=f"--out {out}", hint=f"go on with it by --resume {out}")
    make_folder(out)
    write_bytes(out / PLAN_NAME, msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def load(out: Path) -> SweepPlan:
    """Read the plan of a sweep's folder.

    Raises:
        RunDirError: there is none, or it does not parse.
    """
    path = out / PLAN_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=SweepPlan)
    except OSError as error:
        raise RunDirError(f"not a sweep's folder: {error.strerror}", where=str(path)) from error
    except msgspec.MsgspecError as error:
        raise RunDirError(f"the plan does not parse: {error}", where=str(path)) from error
