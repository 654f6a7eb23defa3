"""Fit one arm's router, and judge it by rows that it has not seen."""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from kvload.analysis.quality.negatives import Gate
from kvload.analysis.records.table import Floats, Ints
from kvload.analysis.routing.boosting import CrossFit, Rows, cross_fit, folds
from kvload.analysis.routing.samples import Samples
from kvload.analysis.routing.skill import (
    QUANTILES,
    as_skill,
    auc,
    brier,
    is_better,
    pinball,
    sentence,
    skill,
)
from kvload.analysis.routing.targets import FURTHEST, RATIO, THETA, Labels, labels
from kvload.errors import UsageError
from kvload.route_model import RANKS, Fitted, Router, Skill, Target

FEWEST = 40
"""Fewer rows than this are not fitted on."""

PROBABILITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_LEAST_SPREAD = 0.02
"""Answers differ by as much (2 %) without meaning it: the least scale of a log length ratio."""

_CONFORMAL_FOLDS = 5
_NO_SKILL = Skill(estimate=None, low=None, high=None)
_UNJUDGED = Fitted(
    n=0,
    clusters=0,
    events=0.0,
    floor_events=None,
    skill=_NO_SKILL,
    brier=_NO_SKILL,
    skill_constant=_NO_SKILL,
    auc=None,
    coverage=None,
    censored=0,
    unknown=0,
    discounted=0.0,
    better=False,
    sentence="",
)


@dataclass(frozen=True, kw_only=True)
class ArmFit:
    """A router, and what was foretold of each known row by the other folds.

    Attributes:
        samples, labels: the known rows.
        value, by_task: how much each needs the full cache: by the router, by its task alone.
    """

    router: Router
    samples: Samples
    labels: Labels
    value: Floats
    by_task: Floats


def fit_arm(
    samples: Samples,
    target: Target,
    *,
    theta: float = THETA,
    ratio: float = RATIO,
    gate: Gate | None = None,
    seed: int = 0,
) -> ArmFit:
    """Fit the router of one arm.

    Args:
        samples: both outcomes of every request.
        theta, ratio, gate: see :func:`kvload.analysis.routing.targets.labels`.
        seed: decides folds, what is drawn and what trees look at.

    Raises:
        UsageError: too few requests, or nothing of what is to be foretold was measured; scikit-learn is missing.
    """
    rng = np.random.default_rng(seed)
    every = labels(samples, target, theta=theta, ratio=ratio, gate=gate, rng=rng)
    known = np.flatnonzero(every.known)
    if len(known) < FEWEST:
        raise UsageError(
            f"only {len(known)} requests have both outcomes of '{samples.arm}'",
            where=f"--target {target}",
            hint=f"{FEWEST} are needed at least, some hundreds for a forecast worth having",
        )
    samples, found = samples.take(known), _taken(every, known)
    event = cross_fit(_rows(samples, found.event, found.weight), "log", rng=rng)
    router = Router(arm=samples.arm, baseline=samples.baseline, event=event.figure, fitted=_UNJUDGED)
    if target == "score":
        return _lost_score(router, samples, found, event, rng)
    if target == "inflation":
        return _lengths(router, samples, found, event, rng)
    losses = [brier(each, found.event) for each in (event.model, event.task, event.constant)]
    value, by_task = _share(event.model), _share(event.task)
    return _judged(router, samples, found, event, losses, value, by_task, rng)


def _lost_score(router: Router, samples: Samples, found: Labels, event: CrossFit, rng: np.random.Generator) -> ArmFit:
    loss = cross_fit(_rows(samples, found.value, found.weight), "squared", rng=rng)
    losses = [(each - found.value) ** 2 for each in (loss.model, loss.task, loss.constant)]
    changed = _with(router, loss=loss.figure)
    return _judged(changed, samples, found, event, losses, loss.model, loss.task, rng)


def _lengths(router: Router, samples: Samples, found: Labels, event: CrossFit, rng: np.random.Generator) -> ArmFit:
    y = np.clip(found.value, -FURTHEST, FURTHEST)
    location = cross_fit(_rows(samples, y, found.weight), "squared", rng=rng)
    away = np.log(np.abs(y - location.model) + _LEAST_SPREAD)
    scale = cross_fit(_rows(samples, away, found.weight), "squared", rng=rng)
    # where the cap lets nothing be known the standard distance is infinite, and so is a quantile that reaches it
    standard = (found.value - location.model) / np.exp(scale.model)
    by_task = (found.value - location.task) / np.exp(scale.task)
    constant = found.value - location.constant
    quantiles = [
        np.array([centre + conformal(distances, q) * width for q in QUANTILES])
        for centre, width, distances in (
            (location.model, np.exp(scale.model), standard),
            (location.task, np.exp(scale.task), by_task),
            (location.constant, np.ones(len(y)), constant),
        )
    ]
    losses = [pinball(np.clip(each, -FURTHEST, FURTHEST), y) for each in quantiles]
    levels = {f"{q:g}": conformal(standard, q) for q in PROBABILITIES}
    changed = _with(
        router,
        location=location.figure,
        scale=scale.figure,
        standard={name: level if np.isfinite(level) else None for name, level in levels.items()},
    )
    is_open = not np.isfinite([levels[f"{q:g}"] for q in (0.1, 0.9)]).all()
    held = None if is_open else held_share(standard, samples.cluster, rng)
    value, task_value = _share(event.model), _share(event.task)
    return _judged(changed, samples, found, event, losses, value, task_value, rng, coverage=held)


def conformal(distances: Floats, probability: float) -> float:
    """The quantile that a new one of such distances stays below with this probability, whatever their distribution.

    The order statistic of split conformal prediction (Vovk et al. 2005), on both sides to the outside; infinite where
    there are too few.
    """
    ordered = np.sort(distances)
    n = len(ordered)
    if probability >= 0.5:
        place = int(np.ceil((n + 1) * probability))
        return float(ordered[place - 1]) if place <= n else float("inf")
    place = int(np.floor((n + 1) * probability))
    return float(ordered[place - 1]) if place >= 1 else -float("inf")


def held_share(standard: Floats, cluster: Ints, rng: np.random.Generator) -> float:
    """The share of rows inside the 80 % interval that the other folds' distances give."""
    fold = folds(cluster, _CONFORMAL_FOLDS, rng)
    inside = np.zeros(len(standard), np.bool_)
    for number in range(_CONFORMAL_FOLDS):
        out = fold == number
        low, high = (conformal(standard[~out], q) for q in (0.1, 0.9))
        inside[out] = (standard[out] >= low) & (standard[out] <= high)
    return float(inside.mean())


def _judged(
    router: Router,
    samples: Samples,
    found: Labels,
    event: CrossFit,
    losses: list[Floats],
    value: Floats,
    by_task: Floats,
    rng: np.random.Generator,
    *,
    coverage: float | None = None,
) -> ArmFit:
    model, task, constant = losses
    over_task = skill(model, task, samples.cluster, rng)
    over_brier = skill(brier(event.model, found.event), brier(event.task, found.event), samples.cluster, rng)
    events = float(found.event.mean())
    floor = None if found.floor_event is None else float(np.nanmean(found.floor_event))
    fitted = Fitted(
        n=len(samples),
        clusters=len(np.unique(samples.cluster)),
        events=events,
        floor_events=floor,
        skill=as_skill(over_task),
        brier=as_skill(over_brier),
        skill_constant=as_skill(skill(model, constant, samples.cluster, rng)),
        auc=auc(event.model, found.event),
        coverage=coverage,
        censored=found.censored,
        unknown=found.unknown,
        discounted=float(1 - found.weight.mean()),
        better=is_better(over_task, over_brier),
        sentence=sentence(over_task, over_brier, events),
    )
    ranks = np.quantile(value, np.linspace(0, 1, RANKS + 1)).tolist()
    return ArmFit(
        router=_with(router, ranks=ranks, fitted=fitted), samples=samples, labels=found, value=value, by_task=by_task
    )


def _with(router: Router, **changes: Any) -> Router:
    return msgspec.structs.replace(router, **changes)


def _rows(samples: Samples, y: Floats, weight: Floats) -> Rows:
    return Rows(features=samples.features, task=samples.task, y=y, weight=weight, cluster=samples.cluster)


def _share(log_odds: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-log_odds))
    return found


def _taken(found: Labels, rows: Ints) -> Labels:
    return Labels(
        known=found.known[rows],
        event=found.event[rows],
        value=found.value[rows],
        mirror=found.mirror[rows],
        weight=found.weight[rows],
        floor_event=None if found.floor_event is None else found.floor_event[rows],
        censored=found.censored,
        unknown=found.unknown,
    )
