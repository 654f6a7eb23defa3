"""Tell a request's task by its words where nobody names it: multinomial naive Bayes over hashed words."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvload.analysis.records.table import Floats, Ints
from kvload.analysis.routing.boosting import FOLDS, folds
from kvload.prompt_features import Asked, buckets
from kvload.route_model import Recogniser

BUCKETS = 1024
_SMOOTH = 0.1
_STRANGE = 1.0
"""A prompt whose words are this much (nats a word) less likely than the least likely of a task is none of it."""


def fit_recogniser(
    requests: Sequence[Asked], task: Sequence[str | None], cluster: Ints, rng: np.random.Generator
) -> Recogniser | None:
    """Learn the words of every task; None where there are not two tasks to tell apart, or no texts.

    Args:
        requests: what was asked, one a conversation or more.
        task: of each; requests without one are left out.
        cluster: what is never split between folds.
        rng: of the folds.
    """
    rows = [row for row, name in enumerate(task) if name is not None and requests[row].text.strip()]
    names = sorted({str(task[row]) for row in rows})
    if len(names) < 2:
        return None
    counts = np.zeros((len(rows), BUCKETS))
    for place, row in enumerate(rows):
        np.add.at(counts[place], buckets(requests[row], BUCKETS), 1)
    which = np.array([names.index(str(task[row])) for row in rows])
    fold = folds(cluster[rows], FOLDS, rng)
    right, typical = np.zeros(len(rows), np.bool_), np.zeros(len(rows))
    for number in range(FOLDS):
        out = fold == number
        if not out.any() or out.all():
            continue
        words, prior = _learn(counts[~out], which[~out], len(names))
        sums = counts[out] @ words.T
        right[out] = np.argmax(sums + prior, axis=1) == which[out]
        typical[out] = sums[np.arange(len(sums)), which[out]] / np.maximum(counts[out].sum(axis=1), 1)
    words, prior = _learn(counts, which, len(names))
    least = [float(typical[which == number].min()) - _STRANGE for number in range(len(names))]
    return Recogniser(
        tasks=names,
        counts=BUCKETS,
        words=np.round(words, 3).tolist(),
        prior=np.round(prior, 3).tolist(),
        least=least,
        accuracy=float(right.mean()),
    )


def _learn(counts: Floats, which: npt.NDArray[np.int64], tasks: int) -> tuple[Floats, Floats]:
    totals = np.array([counts[which == number].sum(axis=0) for number in range(tasks)]) + _SMOOTH
    prior = np.array([np.count_nonzero(which == number) + 1.0 for number in range(tasks)])
    return np.log(totals / totals.sum(axis=1, keepdims=True)), np.log(prior / prior.sum())
