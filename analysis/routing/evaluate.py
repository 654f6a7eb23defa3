"""A router held against requests that it was not fitted on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvload.analysis.quality.negatives import Gate
from kvload.analysis.records.table import Floats
from kvload.analysis.routing.boosting import foretold
from kvload.analysis.routing.curve import SHARES, Curve, curve
from kvload.analysis.routing.samples import Samples
from kvload.analysis.routing.skill import QUANTILES, auc, brier, is_better, pinball, sentence, skill
from kvload.analysis.routing.targets import FURTHEST, Labels, labels
from kvload.analysis.statistics.estimates import Estimate
from kvload.errors import UsageError
from kvload.route_model import Figure, Router, Routers


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a router is worth on other requests.

    Attributes:
        skill, brier: over the task, as the fit knew it; ``skill_constant`` over one figure for all.
        coverage: share inside the 80 % interval of the length ratio; None for other targets, and where it is open.
        better, sentence: the verdict.
        unknown_tasks: requests of a task that the fit had not seen.
    """

    arm: str
    n: int
    clusters: int
    events: float
    floor_events: float | None
    skill: Estimate
    brier: Estimate
    skill_constant: Estimate
    auc: float | None
    coverage: float | None
    censored: int
    unknown: int
    unknown_tasks: int
    better: bool
    sentence: str
    curve: Curve


def evaluate(
    samples: Samples,
    routers: Routers,
    router: Router,
    *,
    gate: Gate | None = None,
    shares: tuple[float, ...] = SHARES,
    seed: int = 0,
) -> Evaluation:
    """Hold a router against both outcomes of requests it has not seen.

    Args:
        samples: the arm that ``router`` is of.
        routers, router: the file, and the one of it.
        shares: of the requests to the full cache, for the curve.
        seed: of the intervals, and of where censored ratios are put.

    Raises:
        UsageError: some prompts were learnt from, or nothing of what is foretold was measured.
    """
    learnt = set(routers.prompts)
    shared = sum(digest in learnt for digest in samples.digest.tolist())
    if shared:
        raise UsageError(
            f"{shared} of {len(samples)} requests ask what the router was fitted on",
            where="--router",
            hint="judge it by other prompts: fit with --part 1/2 and evaluate with --part 2/2",
        )
    rng = np.random.default_rng(seed)
    every = labels(samples, routers.target, theta=routers.theta, ratio=routers.ratio, gate=gate, rng=rng)
    rows = np.flatnonzero(every.known)
    if not len(rows):
        raise UsageError(f"no request has both outcomes of '{samples.arm}'")
    samples = samples.take(rows)
    found = Labels(
        known=every.known[rows],
        event=every.event[rows],
        value=every.value[rows],
        mirror=every.mirror[rows],
        weight=every.weight[rows],
        floor_event=None if every.floor_event is None else every.floor_event[rows],
        censored=every.censored,
        unknown=every.unknown,
    )
    if not samples.features.shape[1] and any(
        figure is not None and figure.trees for figure in (router.event, router.loss, router.location, router.scale)
    ):
        raise UsageError("the router looks at prompts, which are not there", hint="name the trace with --trace")
    event = _three(router.event, samples)
    briers = [brier(each, found.event) for each in event]
    coverage = None
    if routers.target == "score":
        value, by_task, constant = _three(router.loss, samples)
        losses = [(each - found.value) ** 2 for each in (value, by_task, constant)]
    elif routers.target == "inflation":
        losses, coverage = _lengths(router, samples, found)
        value, by_task = _share(event[0]), _share(event[1])
    else:
        losses = briers
        value, by_task = _share(event[0]), _share(event[1])
    over_task = skill(losses[0], losses[1], samples.cluster, rng)
    over_brier = skill(briers[0], briers[1], samples.cluster, rng)
    known_tasks = set(() if router.event is None else router.event.levels)
    events = float(found.event.mean())
    return Evaluation(
        arm=samples.arm,
        n=len(samples),
        clusters=len(np.unique(samples.cluster)),
        events=events,
        floor_events=None if found.floor_event is None else float(np.nanmean(found.floor_event)),
        skill=over_task,
        brier=over_brier,
        skill_constant=skill(losses[0], losses[2], samples.cluster, rng),
        auc=auc(event[0], found.event),
        coverage=coverage,
        censored=found.censored,
        unknown=found.unknown,
        unknown_tasks=sum(task not in known_tasks for task in samples.task.tolist()),
        better=is_better(over_task, over_brier),
        sentence=sentence(over_task, over_brier, events),
        curve=curve(samples, found, value, by_task, shares=shares, rng=rng),
    )


def _three(figure: Figure | None, samples: Samples) -> tuple[Floats, Floats, Floats]:
    """A figure of every row with its trees, by the task alone, and one for all."""
    if figure is None:
        raise UsageError("the router does not hold what its target needs", hint="fit it again")
    bare = Figure(level=figure.level, levels=figure.levels)
    return (
        foretold(figure, samples.task, samples.features),
        foretold(bare, samples.task, samples.features),
        np.full(len(samples), figure.level),
    )


def _lengths(router: Router, samples: Samples, found: Labels) -> tuple[list[Floats], float | None]:
    y = np.clip(found.value, -FURTHEST, FURTHEST)
    location, scale = _three(router.location, samples), _three(router.scale, samples)
    standard: list[Any] = [router.standard.get(f"{q:g}") for q in QUANTILES]
    bounds = [-FURTHEST if q < 0.5 else FURTHEST for q in QUANTILES]
    losses: list[Floats] = []
    held = None
    for centre, width in zip(location, scale, strict=True):
        quantiles = np.array(
            [
                np.full(len(y), bound) if level is None else centre + level * np.exp(width)
                for level, bound in zip(standard, bounds, strict=True)
            ]
        )
        losses.append(pinball(np.clip(quantiles, -FURTHEST, FURTHEST), y))
        # an interval that the cap leaves open holds anything
        if len(losses) == 1 and standard[0] is not None and standard[-1] is not None:
            held = float(np.mean((found.value >= quantiles[0]) & (found.value <= quantiles[-1])))
    return losses, held


def _share(log_odds: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-log_odds))
    return found
