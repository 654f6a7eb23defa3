"""Worlds in which it is known what makes a request fragile."""

from typing import Literal

import numpy as np

from kvload.analysis.records.table import Floats
from kvload.analysis.routing.samples import Samples
from kvload.prompt_features import FEATURES

TASKS = ("easy", "middling", "hard")
CHANCE = {"easy": 0.05, "middling": 0.2, "hard": 0.5}
LONGER = {"easy": 0.0, "middling": 0.1, "hard": 0.3}


def world(
    n: int,
    seed: int,
    decides: Literal["task", "feature"],
    *,
    cap: float | None = None,
    clusters: int | None = None,
) -> tuple[Samples, Floats]:
    """Requests of three tasks, and the true log ratio of every answer's length.

    Args:
        decides: what makes a request fragile and its answer longer: its task alone, or two features besides.
        cap: answers are cut at so many tokens.
        clusters: so many conversations; every request its own where None.
    """
    rng = np.random.default_rng(seed)
    task = np.array([TASKS[place] for place in rng.integers(0, 3, n)], np.object_)
    features = np.round(rng.normal(size=(n, len(FEATURES))), 4)
    chance = np.array([CHANCE[name] for name in task])
    location = np.array([LONGER[name] for name in task])
    width = np.full(n, 0.3)
    if decides == "feature":
        log_odds = np.log(chance / (1 - chance)) + 3.0 * (features[:, 0] > 0.5) - 1.0 + 1.5 * (features[:, 3] > 0)
        chance = 1 / (1 + np.exp(-log_odds))
        location = location + 0.5 * features[:, 0]
        width = np.where(features[:, 1] > 0, 0.6, 0.3)
    base_tokens = np.round(np.exp(rng.normal(5, 0.6, n)) + 1)
    true = location + rng.standard_t(4, n) * width
    arm_tokens = np.maximum(1, np.round(base_tokens * np.exp(true)))
    true = np.log(arm_tokens / base_tokens)
    limit = np.inf if cap is None else cap
    nothing = np.full(n, np.nan)
    which = np.arange(n) if clusters is None else rng.integers(0, clusters, n)
    digest = np.array([f"{seed:04x}{row:020x}"[::-1] for row in range(n)])
    return Samples(
        arm="method",
        baseline="none",
        digest=digest,
        root=digest if clusters is None else digest[which],
        request=np.arange(n),
        repeat=np.zeros(n, np.int64),
        cluster=which,
        task=task,
        features=features,
        base_score=np.ones(n),
        arm_score=np.where(rng.random(n) < chance, 0.0, 1.0),
        again_score=nothing,
        base_tokens=np.minimum(base_tokens, limit),
        arm_tokens=np.minimum(arm_tokens, limit),
        again_tokens=nothing,
        base_cut=base_tokens >= limit,
        arm_cut=arm_tokens >= limit,
        again_cut=np.zeros(n, np.bool_),
        base_bytes=np.full(n, 2.0),
        arm_bytes=np.full(n, 1.0),
    ), true
