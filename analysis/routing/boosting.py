"""Gradient boosting (Friedman 2001) on top of what the task alone foretells, kept as plain numbers.

Every figure starts from its task's level, drawn towards that of all tasks where a task has few rows. Trees are added
only as long as they foretell rows that they have not seen better than the level does, by :data:`SURE` standard errors:
where the task decides alone there are none, and the forecast is the task's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.errors import UsageError
from kvload.route_model import Figure, Tree

Loss = Literal["log", "squared"]

TREES = 40
RATE = 0.15
DEPTH = 3
LEAST_LEAF = 10
ROWS_A_TREE = 800
ROWS_TO_CHOOSE = 3000
"""How many trees are worth it is found on so many rows at most."""

PATIENCE = 12
"""So many trees without a gain, and no more are tried."""

SURE = 2.0
INNER_FOLDS = 3
FOLDS = 5
PULL = 4.0
"""So many rows' worth of the level of all tasks goes into each task's."""

_MOST_LOG_ODDS = 6.0
_STEP = 4.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a figure is fitted on: shapes (n, f) and (n,)."""

    features: Floats
    task: npt.NDArray[np.object_]
    y: Floats
    weight: Floats
    cluster: Ints

    def take(self, rows: Ints | Bools) -> "Rows":
        """Some of the rows."""
        return Rows(
            features=self.features[rows],
            task=self.task[rows],
            y=self.y[rows],
            weight=self.weight[rows],
            cluster=self.cluster[rows],
        )


@dataclass(frozen=True, kw_only=True)
class CrossFit:
    """A figure fitted on all rows, and what was foretold of each row by the others.

    Attributes:
        figure: what was fitted on all rows.
        model, task, constant: forecasts out of fold: with the trees, by the task alone, one for all.
    """

    figure: Figure
    model: Floats
    task: Floats
    constant: Floats


def tree_class() -> Any:
    """scikit-learn's regression tree.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from sklearn.tree import DecisionTreeRegressor
    except ImportError as error:
        raise UsageError(
            "fitting needs scikit-learn, which is not installed", hint="pip install 'kvload[route]'"
        ) from error
    return DecisionTreeRegressor


def folds(cluster: Ints, count: int, rng: np.random.Generator) -> Ints:
    """The fold of each row: whole clusters, as equal as they are."""
    names, which = np.unique(cluster, return_inverse=True)
    place = rng.permutation(len(names)) % count
    found: Ints = place[which]
    return found


def levels(rows: Rows, loss: Loss) -> Figure:
    """What the task alone foretells."""
    total = float(rows.weight.sum())
    if loss == "log":
        overall = (float((rows.weight * rows.y).sum()) + 0.5) / (total + 1)
    else:
        overall = float((rows.weight * rows.y).sum()) / total
    found = {}
    for name in sorted({task for task in rows.task.tolist() if task is not None}):
        of = rows.task == name
        weight = float(rows.weight[of].sum())
        found[str(name)] = (float((rows.weight[of] * rows.y[of]).sum()) + PULL * overall) / (weight + PULL)
    if loss == "log":
        return Figure(level=_log_odds(overall), levels={name: _log_odds(share) for name, share in found.items()})
    return Figure(level=overall, levels=found)


def cross_fit(rows: Rows, loss: Loss, *, rng: np.random.Generator) -> CrossFit:
    """Fit a figure, and foretell every row from the folds that it is not in.

    Args:
        rows: what to fit on; clusters are never split between folds.
        loss: ``log`` for a probability (the figure is its log-odds), ``squared`` for a mean.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    fold = folds(rows.cluster, FOLDS, rng)
    model, task, constant = (np.zeros(len(rows.y)) for _ in range(3))
    for number in range(FOLDS):
        out = fold == number
        if not out.any() or out.all():
            continue
        inside = rows.take(~out)
        base = levels(inside, loss)
        trees = _trees(inside, base, loss, rng)
        task[out] = starts(base, rows.task[out])
        constant[out] = base.level
        model[out] = task[out] + added(trees, rows.features[out])
    base = levels(rows, loss)
    figure = Figure(level=base.level, levels=base.levels, trees=_trees(rows, base, loss, rng))
    return CrossFit(figure=figure, model=model, task=task, constant=constant)


def starts(figure: Figure, task: npt.NDArray[np.object_]) -> Floats:
    """What the task alone foretells of each row."""
    return np.array([figure.by_task(name) for name in task.tolist()])


def added(trees: Sequence[Tree], features: Floats) -> Floats:
    """What trees add for every row of features."""
    total = np.zeros(len(features))
    for tree in trees:
        total += _leaf_values(tree, features)
    return total


def foretold(figure: Figure, task: npt.NDArray[np.object_], features: Floats) -> Floats:
    """A figure of every row."""
    return starts(figure, task) + added(figure.trees, features)


def losses(predicted: Floats, y: Floats, loss: Loss) -> Floats:
    """The loss of every row: of a probability by its log-odds, or of a number."""
    if loss == "log":
        found: Floats = np.logaddexp(0.0, predicted) - y * predicted
        return found
    return (predicted - y) ** 2


def _trees(rows: Rows, base: Figure, loss: Loss, rng: np.random.Generator) -> list[Tree]:
    """As many trees as foretell unseen rows better."""
    if not rows.features.shape[1] or len(rows.y) < 4 * LEAST_LEAF:
        return []
    count = _wanted(rows, loss, rng)
    return list(_boost(rows, base, loss, count, rng))


def _wanted(rows: Rows, loss: Loss, rng: np.random.Generator) -> int:
    """How many trees are worth it, by cross-validation; none where the gain is not surely above nothing."""
    if len(rows.y) > ROWS_TO_CHOOSE:
        rows = rows.take(folds(rows.cluster, -(-len(rows.y) // ROWS_TO_CHOOSE), rng) == 0)
    fold = folds(rows.cluster, INNER_FOLDS, rng)
    gain = np.zeros((TREES, len(rows.y)))
    for number in range(INNER_FOLDS):
        out = fold == number
        if not out.any() or out.all():
            return 0
        inside = rows.take(~out)
        base = levels(inside, loss)
        start = starts(base, rows.task[out])
        before = losses(start, rows.y[out], loss)
        predicted = start
        best = 0
        for place, tree in enumerate(_boost(inside, base, loss, TREES, rng)):
            predicted = predicted + _leaf_values(tree, rows.features[out])
            # what comes after the last tree that is tried counts as that one
            gain[place:, out] = (before - losses(predicted, rows.y[out], loss)) * rows.weight[out]
            if gain[place, out].sum() > gain[best, out].sum():
                best = place
            elif place - best >= PATIENCE:
                break
    best = int(np.argmax(gain.sum(axis=1)))
    _, which = np.unique(rows.cluster, return_inverse=True)
    by_cluster = np.bincount(which, gain[best])
    error = float(np.sqrt(len(by_cluster)) * by_cluster.std(ddof=1)) if len(by_cluster) > 1 else float("inf")
    return best + 1 if by_cluster.sum() > SURE * error else 0


def _boost(rows: Rows, base: Figure, loss: Loss, count: int, rng: np.random.Generator) -> Iterator[Tree]:
    make = tree_class()
    features = np.ascontiguousarray(rows.features, np.float32)
    n = len(rows.y)
    predicted = starts(base, rows.task)
    leaf = max(LEAST_LEAF, min(n, ROWS_A_TREE) // 50)
    for _ in range(count):
        chosen = rng.choice(n, ROWS_A_TREE, replace=False) if n > ROWS_A_TREE else np.arange(n)
        share = 1 / (1 + np.exp(-predicted)) if loss == "log" else predicted
        gradient = rows.y - share
        curvature = share * (1 - share) if loss == "log" else np.ones(n)
        grown = make(max_depth=DEPTH, min_samples_leaf=leaf, max_features=0.7, random_state=int(rng.integers(1 << 31)))
        target = np.ascontiguousarray(gradient[chosen, None])
        grown.fit(features[chosen], target, sample_weight=rows.weight[chosen], check_input=False)
        at = grown.apply(features, check_input=False)
        size = grown.tree_.node_count
        top = np.bincount(at, rows.weight * gradient, size)
        bottom = np.bincount(at, rows.weight * curvature, size)
        step = np.divide(top, bottom, out=np.zeros(size), where=bottom > 1e-9)
        step = RATE * (np.clip(step, -_STEP, _STEP) if loss == "log" else step)
        predicted = predicted + step[at]
        yield _as_numbers(grown.tree_, step)


def _as_numbers(grown: Any, values: Floats) -> Tree:
    is_leaf = grown.children_left < 0
    return Tree(
        feature=np.where(is_leaf, -1, grown.feature).tolist(),
        threshold=np.where(is_leaf, 0.0, grown.threshold).tolist(),
        left=np.where(is_leaf, 0, grown.children_left).tolist(),
        right=np.where(is_leaf, 0, grown.children_right).tolist(),
        value=np.where(is_leaf, values, 0.0).tolist(),
    )


def _leaf_values(tree: Tree, features: Floats) -> Floats:
    feature, threshold = np.array(tree.feature), np.array(tree.threshold)
    left, right, value = np.array(tree.left), np.array(tree.right), np.array(tree.value)
    node = np.zeros(len(features), np.int64)
    rows = np.arange(len(features))
    while (asks := feature[node] >= 0).any():
        here = node[asks]
        goes_left = features[rows[asks], feature[here]] <= threshold[here]
        node[asks] = np.where(goes_left, left[here], right[here])
    found: Floats = value[node]
    return found


def _log_odds(share: float) -> float:
    return float(
        np.clip(
            np.log(share / (1 - share)) if 0 < share < 1 else np.sign(share - 0.5) * np.inf,
            -_MOST_LOG_ODDS,
            _MOST_LOG_ODDS,
        )
    )
