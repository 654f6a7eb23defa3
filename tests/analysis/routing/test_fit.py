"""Routers fitted in worlds that are known, judged by draws that they have not seen."""

import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from kvload.analysis.routing.boosting import Rows, cross_fit, foretold, levels
from kvload.analysis.routing.curve import curve, sent
from kvload.analysis.routing.evaluate import evaluate
from kvload.analysis.routing.fit import fit_arm, held_share
from kvload.analysis.routing.samples import Samples, concatenate, part_of
from kvload.analysis.routing.targets import discounted, labels, place, turnbull
from kvload.analysis.statistics.significance import kaplan_meier
from kvload.errors import UsageError
from kvload.prompt_features import FEATURES
from kvload.route_model import Router, Routers, Target
from tests.analysis.routing.worlds import world

pytest.importorskip("sklearn")


def file_of(router: Router, target: Target, prompts: list[str] | None = None) -> Routers:
    return Routers(
        kvload_version="0",
        target=target,
        theta=0.1,
        ratio=1.5,
        features=list(FEATURES),
        routers=[router],
        prompts=prompts or [],
    )


@pytest.mark.parametrize("target", ["negative", "score", "inflation"])
def test_where_the_task_decides_alone_it_says_so(target: Target) -> None:
    for seed in range(2):
        fitted = fit_arm(world(300, seed, "task")[0], target, seed=seed).router.fitted
        assert not fitted.better
        assert fitted.sentence.startswith("no better than routing by task")
        assert abs(fitted.skill.estimate or 0.0) < 0.05


@pytest.mark.parametrize("target", ["negative", "score", "inflation"])
def test_a_feature_that_decides_is_found_and_holds_elsewhere(target: Target) -> None:
    found = fit_arm(world(500, 1, "feature")[0], target)
    assert found.router.fitted.better
    assert found.router.fitted.sentence.startswith("better than routing by task")
    other = evaluate(world(700, 2, "feature")[0], file_of(found.router, target), found.router)
    assert other.better
    assert other.skill.low is not None
    assert other.skill.low > 0.03
    assert (other.brier.estimate or 0) >= 0.05
    assert other.auc is not None
    assert other.auc > 0.75
    at = other.curve.at(0.2)
    assert at.over_task is not None
    assert at.over_task.low is not None
    assert at.over_task.low > 0


@pytest.mark.parametrize("decides", ["task", "feature"])
def test_eighty_per_cent_intervals_hold_four_in_five(decides: str) -> None:
    found = fit_arm(world(1200, 3, decides)[0], "inflation")  # type: ignore[arg-type]
    assert found.router.fitted.coverage == pytest.approx(0.8, abs=0.03)
    fresh, true = world(4000, 4, decides)  # type: ignore[arg-type]
    inside = []
    for row in range(len(true)):
        low = found.router.quantile("0.1", fresh.task[row], fresh.features[row].tolist())
        high = found.router.quantile("0.9", fresh.task[row], fresh.features[row].tolist())
        assert low is not None
        assert high is not None
        inside.append(low <= true[row] <= high)
    assert np.mean(inside) == pytest.approx(0.8, abs=0.03)


def test_intervals_hold_although_answers_are_cut() -> None:
    """A fifth of the answers are cut; their true lengths are known to the test alone."""
    found = fit_arm(world(1500, 5, "task", cap=250.0)[0], "inflation")
    assert found.router.fitted.censored > 150
    fresh, true = world(4000, 6, "task")
    table = {
        name: [found.router.quantile(q, name, [0.0] * len(FEATURES)) for q in ("0.1", "0.9")]
        for name in ("easy", "middling", "hard")
    }
    inside = [
        (table[name][0] or -9.0) <= value <= (table[name][1] or 9.0)
        for name, value in zip(fresh.task, true, strict=True)
    ]
    assert np.mean(inside) == pytest.approx(0.8, abs=0.04)


def test_what_lies_beyond_the_cap_is_not_made_up() -> None:
    """Nearly every compressed answer runs into the cap: its upper quantile is unknown."""
    samples, _ = world(600, 7, "task")
    cut = np.random.default_rng(0).random(600) < 0.7
    samples = replace(samples, arm_tokens=np.where(cut, samples.base_tokens * 3, samples.arm_tokens), arm_cut=cut)
    router = fit_arm(samples, "inflation").router
    assert router.standard["0.9"] is None
    assert router.quantile("0.9", "easy", [0.0] * len(FEATURES)) is None
    assert router.quantile("0.1", "easy", [0.0] * len(FEATURES)) is not None


def test_turnbull_is_kaplan_meier_where_only_the_right_is_cut() -> None:
    rng = np.random.default_rng(8)
    true, limit = rng.exponential(10, 300), rng.exponential(20, 300)
    values, cut = np.minimum(true, limit), true > limit
    curve_ = kaplan_meier(values, cut)
    found = turnbull(values, cut.astype(int))
    finite = np.isfinite(found.support)
    longer = 1 - found.mass[finite].cumsum()
    for length, share in zip(curve_.lengths, curve_.longer, strict=True):
        at = np.searchsorted(found.support[finite], length, side="right") - 1
        if at >= 0:
            assert longer[at] == pytest.approx(share, abs=0.01)


def test_places_of_what_is_cut_follow_the_true_distribution() -> None:
    rng = np.random.default_rng(9)
    true, limit = rng.normal(0, 1, 4000), rng.normal(0.5, 1, 4000)
    side = np.where(true > limit, 1, 0)
    placed = place(np.minimum(true, limit), side, np.array(["t"] * 4000, np.object_), rng)
    placed = placed[np.isfinite(placed)]
    assert np.quantile(placed, [0.25, 0.5, 0.75]) == pytest.approx([-0.674, 0, 0.674], abs=0.07)
    assert np.median(np.minimum(true, limit)) < -0.2


def test_trees_as_numbers_are_the_trees() -> None:
    samples, _ = world(500, 10, "feature")
    rows = Rows(
        features=samples.features,
        task=samples.task,
        y=1 - samples.arm_score,
        weight=np.ones(500),
        cluster=samples.cluster,
    )
    figure = cross_fit(rows, "log", rng=np.random.default_rng(0)).figure
    assert figure.trees
    every = foretold(figure, samples.task, samples.features)
    one = [figure.of(task, row.tolist()) for task, row in zip(samples.task, samples.features, strict=True)]
    assert one == pytest.approx(every.tolist())
    assert levels(rows, "log").levels == figure.levels


def test_a_request_that_the_baseline_itself_answers_differently_is_discounted() -> None:
    assert discounted(0.25, np.array([0.0, 0.5, 5.0])) == pytest.approx([1.0, 0.5, 0.0099], abs=1e-4)
    samples, _ = world(400, 11, "task")
    again = samples.base_score.copy()
    again[:40] = 0.0
    noisy = replace(samples, again_score=again)
    found = labels(noisy, "negative", rng=np.random.default_rng(0))
    assert (found.weight[:40] < 0.2).all()
    assert (found.weight[40:] == 1).all()
    assert found.floor_event is not None
    assert found.floor_event.mean() == pytest.approx(0.1)


def equal_arms(repeats: int, seed: int) -> Samples:
    """Nothing differs but chance: every answer is right with the same probability in every run."""
    rng = np.random.default_rng(seed)
    n = 2000
    part, _ = world(n, seed, "task")
    many = []
    for repeat in range(repeats):
        scores = [rng.integers(0, 2, n).astype(float) for _ in range(3)]
        many.append(
            replace(
                part,
                base_score=scores[0],
                arm_score=scores[1],
                again_score=scores[2] if repeats == 1 else np.full(n, np.nan),
                repeat=np.full(n, repeat),
            )
        )
    joined = concatenate(many)
    return replace(joined, request=np.tile(part.request, repeats), cluster=np.tile(part.cluster, repeats))


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_winners_curse_is_taken_off_the_oracle(repeats: int) -> None:
    samples = equal_arms(repeats, 12)
    rng = np.random.default_rng(0)
    found = labels(samples, "negative", rng=rng)
    noise = rng.random(len(samples))
    points = curve(samples, found, noise, np.zeros(len(samples)), shares=(0.0, 0.25), rng=rng)
    at = points.at(0.25)
    lost = samples.base_score - samples.arm_score
    cursed = float((sent(lost, 0.25) * lost).mean())
    assert cursed > 0.2
    assert at.oracle is not None
    assert at.oracle - float(samples.arm_score.mean()) == pytest.approx(0.0, abs=0.02)
    assert at.recovered is None


def test_the_ends_of_the_curve_are_the_two_servers() -> None:
    samples, _ = world(300, 13, "feature")
    rng = np.random.default_rng(1)
    found = labels(samples, "negative", rng=rng)
    value = rng.random(300)
    points = curve(samples, found, value, np.zeros(300), rng=rng)
    none, half, every = points.at(0.0), points.at(0.5), points.at(1.0)
    assert none.score is not None
    assert none.score.estimate == pytest.approx(samples.arm_score.mean())
    assert every.score is not None
    assert every.score.estimate == pytest.approx(samples.base_score.mean())
    order = np.argsort(-value)
    by_hand = samples.arm_score.copy()
    by_hand[order[:150]] = samples.base_score[order[:150]]
    assert half.score is not None
    assert half.score.estimate == pytest.approx(by_hand.mean())
    lost = samples.base_score - samples.arm_score
    assert half.recovered is not None
    assert half.recovered.estimate == pytest.approx(lost[order[:150]].sum() / lost.sum())
    assert half.bytes_share == pytest.approx(0.75)
    assert half.by_task == pytest.approx(half.random)
    assert none.net_negatives is not None
    assert none.net_negatives.estimate == pytest.approx(lost.sum())
    assert every.net_negatives is not None
    assert every.net_negatives.estimate == pytest.approx(0.0)


def test_requests_of_one_value_are_sent_in_equal_parts() -> None:
    assert sent(np.array([3.0, 1.0, 1.0, 0.0]), 0.5).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert sent(np.zeros(4), 0.3).tolist() == pytest.approx([0.3] * 4)


def test_a_router_is_not_judged_by_what_it_learnt_from() -> None:
    samples, _ = world(300, 14, "task")
    router = fit_arm(samples, "negative").router
    file = file_of(router, "negative", samples.digest.tolist())
    with pytest.raises(UsageError, match="300 of 300 requests ask what the router was fitted on"):
        evaluate(samples, file, router)
    assert not evaluate(world(300, 15, "task")[0], file, router).better


def test_parts_share_no_conversation() -> None:
    samples, _ = world(600, 16, "task", clusters=200)
    parts = [part_of(samples, number, 3) for number in (1, 2, 3)]
    assert sum(map(len, parts)) == 600
    assert min(map(len, parts)) > 100
    seen = [set(part.cluster.tolist()) for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]


def test_the_same_seed_gives_the_same_router() -> None:
    one, two = (fit_arm(world(300, 17, "feature")[0], "negative", seed=3).router for _ in range(2))
    assert msgspec.json.encode(one) == msgspec.json.encode(two)


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="only 30 requests"):
        fit_arm(world(30, 18, "task")[0], "negative")
    samples, _ = world(100, 19, "task")
    unscored = replace(samples, base_score=np.full(100, np.nan))
    with pytest.raises(UsageError, match="no answer was scored"):
        fit_arm(unscored, "negative")


def test_coverage_is_of_rows_that_did_not_decide_it() -> None:
    rng = np.random.default_rng(20)
    assert held_share(rng.normal(size=3000), np.arange(3000), rng) == pytest.approx(0.8, abs=0.025)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(UsageError) as caught:
        fit_arm(world(100, 21, "task")[0], "negative")
    assert "pip install 'kvload[route]'" in str(caught.value)
