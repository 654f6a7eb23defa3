"""The contract of routing: what was fitted of a comparison, as plain numbers in one JSON file, and how it is applied.

A model of one figure is a level for every task, and trees whose values are added to it (gradient boosting: Friedman
2001). Nothing of the library that fitted it is needed to apply it, and nothing in the file is ever run.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from kvload.errors import UsageError
from kvload.prompt_features import FEATURES, Asked, buckets
from kvload.untrusted import DECODE_ERRORS

Target = Literal["negative", "inflation", "score"]

FILE_LIMIT = 64 << 20
MOST_TREES = 2000
MOST_NODES = 4096
DEEPEST = 64
RANKS = 100


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """One regression tree; all lists have one entry a node, the root's first.

    Attributes:
        feature: which feature is asked; -1 in a leaf.
        threshold: a row goes left where its feature is at most this.
        left, right: the nodes below.
        value: what a leaf adds, learning rate included.
    """

    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    value: list[float]

    def of(self, row: Sequence[float]) -> float:
        """What the tree adds for one row of features."""
        node = 0
        while (feature := self.feature[node]) >= 0:
            node = self.left[node] if row[feature] <= self.threshold[node] else self.right[node]
        return self.value[node]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A figure foretold: ``levels`` by task (``level`` for any other), and what the trees add."""

    level: float
    levels: dict[str, float] = {}
    trees: list[Tree] = []

    def of(self, task: str | None, row: Sequence[float]) -> float:
        """The figure of one request."""
        start = self.level if task is None else self.levels.get(task, self.level)
        return start + sum(tree.of(row) for tree in self.trees)

    def by_task(self, task: str | None) -> float:
        """The figure that the task alone foretells."""
        return self.level if task is None else self.levels.get(task, self.level)


class Skill(msgspec.Struct, frozen=True, kw_only=True):
    """How much better a forecast is than another: 1 less the ratio of their losses, with an interval over clusters."""

    estimate: float | None
    low: float | None
    high: float | None


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """What a fit says of itself; all of it out of fold.

    Attributes:
        n, clusters: rows, and what was resampled (conversations, requests).
        events: share of rows with the event; ``floor_events`` the same between the two runs of the baseline (A/A).
        skill: on the target's own loss over routing by task; ``brier``: of the event's probability over it.
        skill_constant: over one figure for all.
        auc: of the event; None where there is none, or nothing else.
        coverage: share of rows inside their 80 % interval; None without one, and where the cap leaves it open.
        censored, unknown: rows cut on one side, on both.
        discounted: the mean weight that rows lost since the baseline's own two runs differ there.
        better: the sentence below says that it is better than routing by task.
        sentence: that, in words.
    """

    n: int
    clusters: int
    events: float
    floor_events: float | None
    skill: Skill
    brier: Skill
    skill_constant: Skill
    auc: float | None
    coverage: float | None
    censored: int
    unknown: int
    discounted: float
    better: bool
    sentence: str


class Router(msgspec.Struct, frozen=True, kw_only=True):
    """The router of one compressed arm against the baseline.

    Attributes:
        arm, baseline: their names.
        event: log-odds that the request is fragile: a negative sample, or an answer ``ratio`` times as long.
        loss: the score that is lost, for the target ``score``.
        location, scale: of the log of the length ratio, for the target ``inflation``.
        standard: quantiles of ``(log ratio - location) / scale`` by probability, calibrated; None above what the cap
            lets be known.
        ranks: the value of the requests of the fit at every per cent, from which a share's threshold is read.
        fitted: what the fit says of itself.
    """

    arm: str
    baseline: str
    event: Figure | None = None
    loss: Figure | None = None
    location: Figure | None = None
    scale: Figure | None = None
    standard: dict[str, float | None] = {}
    ranks: list[float] = []
    fitted: Fitted

    def value(self, target: Target, task: str | None, row: Sequence[float]) -> float:
        """How much a request needs the full cache: a probability, or an expected loss of score."""
        figure = self.loss if target == "score" else self.event
        if figure is None:
            return 0.0
        found = figure.of(task, row)
        return found if target == "score" else probability(found)

    def rank(self, value: float, tie: float) -> float:
        """Where a value lies among those of the fit, 0 (the least) to 1.

        Args:
            tie: 0 to 1, decides among requests of the same value.
        """
        if not self.ranks:
            return tie
        last = len(self.ranks) - 1
        low, high = bisect_left(self.ranks, value), bisect_right(self.ranks, value)
        if low == high:
            return min(max((low - 0.5) / last, 0.0), 1.0)
        return (low + tie * (high - 1 - low)) / last

    def quantile(self, probability_: str, task: str | None, row: Sequence[float]) -> float | None:
        """A quantile of the log length ratio; None where it lies beyond what the cap lets be known.

        Args:
            probability_: one of the keys of ``standard``, such as ``"0.9"``.
        """
        standard = self.standard.get(probability_)
        if standard is None or self.location is None or self.scale is None:
            return None
        return self.location.of(task, row) + standard * spread(self.scale.of(task, row))


class Recogniser(msgspec.Struct, frozen=True, kw_only=True):
    """Tells a request's task by its words, where nobody names it (multinomial naive Bayes over hashed words).

    Attributes:
        tasks: their names.
        counts: buckets that words fall in.
        words: for every task the log-probability of every bucket.
        prior: log-probability of every task.
        least: for every task the mean log-probability of a word below which a prompt is none of it.
        accuracy: out of fold.
    """

    tasks: list[str]
    counts: int
    words: list[list[float]]
    prior: list[float]
    least: list[float]
    accuracy: float

    def task(self, request: Asked) -> str | None:
        """The task that a request looks like; None for one that looks like none."""
        found = buckets(request, self.counts)
        if not found:
            return None
        sums = [sum(map(words.__getitem__, found)) for words in self.words]
        best = max(range(len(sums)), key=lambda place: sums[place] + self.prior[place])
        return self.tasks[best] if sums[best] / len(found) >= self.least[best] else None


class Routers(msgspec.Struct, frozen=True, kw_only=True):
    """The file.

    Attributes:
        target: what the routers foretell.
        theta: the relative fall that makes a negative sample.
        ratio: the length ratio from which an answer counts as inflated.
        features: the names of the features, in their order.
        prompts: digests of the prompts that were learnt from; a comparison with any of them cannot judge the router.
        notes: what was left out.
    """

    kind: Literal["kvload-router-1"] = "kvload-router-1"
    kvload_version: str
    target: Target
    theta: float
    ratio: float
    features: list[str]
    routers: list[Router]
    recogniser: Recogniser | None = None
    prompts: list[str] = []
    notes: list[str] = []

    def of(self, arm: str | None) -> Router:
        """The router of an arm; the only one where None.

        Raises:
            UsageError: there is none of that name, or several and none is named.
        """
        names = [router.arm for router in self.routers]
        if arm is None and len(names) == 1:
            return self.routers[0]
        if arm not in names:
            message = "which arm's router?" if arm is None else f"the file has no router for '{arm}'"
            raise UsageError(message, where="--arm", hint=f"there are: {', '.join(names)}")
        return self.routers[names.index(arm)]


def probability(log_odds: float) -> float:
    """From log-odds."""
    return 1 / (1 + math.exp(-max(min(log_odds, 700.0), -700.0)))


def spread(log_scale: float) -> float:
    """The scale whose logarithm was fitted."""
    return math.exp(max(min(log_scale, 20.0), -20.0))


def read(path: Path) -> Routers:
    """Read a router's file, which may come from anywhere.

    Raises:
        UsageError: it cannot be read, is none, or holds what could not be applied.
    """
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise UsageError("too large for a router", where=str(path))
        found = msgspec.json.decode(path.read_bytes(), type=Routers)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except DECODE_ERRORS as error:
        hint = "kvload route fit COMPARISON -o FILE makes one"
        raise UsageError(f"is no router: {error}", where=str(path), hint=hint) from error
    _check(found, str(path))
    return found


def write(path: Path, routers: Routers) -> None:
    """Write a router's file.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.encode(routers) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from error


def _check(found: Routers, where: str) -> None:
    if tuple(found.features) != FEATURES:
        raise UsageError(
            "the router was made with other features than this kvload has", where=where, hint="fit it again"
        )
    if not found.routers:
        raise UsageError("it holds no router", where=where)
    for router in found.routers:
        if any(b < a for a, b in zip(router.ranks, router.ranks[1:], strict=False)):
            raise UsageError("its ranks do not ascend", where=where)
        for figure in (router.event, router.loss, router.location, router.scale):
            if figure is not None:
                _check_figure(figure, where)
    said = found.recogniser
    if said is not None:
        lengths = {len(said.tasks), len(said.words), len(said.prior), len(said.least)}
        if len(lengths) > 1 or not 0 < said.counts <= 1 << 20 or any(len(row) != said.counts for row in said.words):
            raise UsageError("its recogniser does not hold together", where=where)


def _check_figure(figure: Figure, where: str) -> None:
    if len(figure.trees) > MOST_TREES:
        raise UsageError(f"more than {MOST_TREES} trees", where=where)
    for tree in figure.trees:
        count = len(tree.feature)
        lists = (tree.threshold, tree.left, tree.right, tree.value)
        if not 0 < count <= MOST_NODES or any(len(each) != count for each in lists):
            raise UsageError("a tree does not hold together", where=where)
        for node, feature in enumerate(tree.feature):
            # both ways lead on to later nodes, so that every walk ends
            ends = feature < 0 or (node < tree.left[node] < count and node < tree.right[node] < count)
            if not ends or feature >= len(FEATURES):
                raise UsageError("a tree leads nowhere", where=where)
