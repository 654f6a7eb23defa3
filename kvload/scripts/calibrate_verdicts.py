"""``make calibrate-verdicts``: how often verdicts are false where nothing differs, and how often changes are found.

Runs are simulated, not measured: every run has a speed of its own (the drift), every request a length, a time to first
token and a time per token, and a share of the answers diverges by chance. What the runs give goes through the very
functions that ``kvload compare`` judges by. The table is printed in Markdown.
"""

import argparse
import heapq
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from kvload.analysis.comparison.decision import MARGIN, attainment_margin, decide, quality_margin
from kvload.analysis.comparison.lengths import CUT_SHARE, certain_log_ratio
from kvload.analysis.records.table import Bools, Floats
from kvload.analysis.run.capacity import next_rate
from kvload.analysis.statistics import crossing, layout, planning, run_figures, significance
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.statistics.run_figures import RunFigures

TOPICS = ("latency", "service", "lengths", "quality")
FLOOR = "again"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is simulated.

    Attributes:
        requests, repeats, methods: of each run, of each arm, beside the baseline and its A/A arm.
        drift: standard deviation of a run's speed, relative.
        uneven: how many times as large it is for the last method.
        diverging: share of answers whose length and score are another in every run.
        faster: how much less time the first method takes; the others equal the baseline.
        longer: how much longer the first method's answers are.
        cut: share of the baseline's answers that ``max_tokens`` cuts off.
    """

    requests: int = 1000
    repeats: int = 3
    methods: int = 1
    drift: float = 0.01
    uneven: float = 1.0
    diverging: float = 0.1
    faster: float = 0.0
    longer: float = 0.0
    cut: float = 0.0


@dataclass(frozen=True)
class _Run:
    tokens: Floats
    is_cut: Bools
    ttft_s: Floats
    tpot_s: Floats
    score: Floats


def _runs(setting: Setting, rng: np.random.Generator) -> list[list[_Run]]:
    """Runs by arm (baseline, A/A, methods) and repeat."""
    n = setting.requests
    typical = rng.lognormal(5.0, 0.6, n)
    first = rng.gamma(4.0, 0.025, n)
    right = rng.random(n) < 0.7
    cap = float(np.quantile(typical, 1 - setting.cut)) if setting.cut else np.inf
    arms = []
    for arm in range(setting.methods + 2):
        is_first = arm == 2
        drift = setting.drift * (setting.uneven if arm == setting.methods + 1 else 1.0)
        runs = []
        for _ in range(setting.repeats):
            speed = np.exp(rng.normal(0.0, drift)) * ((1 - setting.faster) if is_first else 1.0)
            other = rng.random(n) < setting.diverging
            length: Floats = typical * (1 + setting.longer if is_first else 1.0)
            length = np.rint(np.where(other, length * rng.lognormal(0.0, 0.5, n), length))
            runs.append(
                _Run(
                    tokens=np.minimum(np.maximum(length, 1.0), cap),
                    is_cut=length >= cap,
                    ttft_s=first * speed * rng.lognormal(0.0, 0.05, n),
                    tpot_s=0.01 * speed * rng.lognormal(0.0, 0.05, n),
                    score=np.where(other, rng.random(n) < 0.7, right).astype(np.float64),
                )
            )
        arms.append(runs)
    return arms


def _figures(base: list[_Run], other: list[_Run], topic: str) -> RunFigures:
    """What :mod:`kvload.analysis.comparison.figures` takes from run folders, from simulated runs."""
    n = len(base[0].tokens)
    repeat, request = np.repeat(np.arange(len(base)), n), np.tile(np.arange(n), len(base))

    def joined(value: Callable[[_Run, _Run], Floats]) -> Floats:
        return np.concatenate([value(b, o) for b, o in zip(base, other, strict=True)])

    if topic == "latency":
        return run_figures.log_ratio(
            joined(lambda b, o: o.ttft_s + o.tpot_s * b.tokens),
            joined(lambda b, _: b.ttft_s + b.tpot_s * b.tokens),
            repeat,
            request,
        )
    if topic == "service":
        before, after = joined(lambda b, _: _met(b)), joined(lambda _, o: _met(o))
        found = run_figures.mean_change(after - before, repeat, request, bounded=True)
        return replace(found, test_p=significance.mcnemar(before > 0, after > 0, request).p_value)
    if topic == "lengths":
        ratio = joined(lambda b, o: certain_log_ratio(b.tokens, o.tokens, b.is_cut, o.is_cut))
        found = run_figures.mean_change(ratio, repeat, request)
        return replace(found, test_p=significance.wilcoxon(ratio, request).p_value)
    return run_figures.mean_change(joined(lambda b, o: o.score - b.score), repeat, request, bounded=True)


def _met(run: _Run) -> Floats:
    return ((run.ttft_s < 0.15) & (run.tpot_s < 0.011)).astype(np.float64)


def outcomes(setting: Setting, rng: np.random.Generator, topics: tuple[str, ...] = TOPICS) -> dict[str, list[str]]:
    """One simulated comparison: what each topic says of each method, the first method first."""
    runs = _runs(setting, rng)
    names = [FLOOR, *(f"method {number}" for number in range(setting.methods))]
    share = float(np.mean([_met(run) for run in runs[0]]))
    score = float(np.mean([run.score for run in runs[0]]))
    margins = {"service": attainment_margin(share), "quality": quality_margin(score)}
    cuts = [[run.is_cut for run in arm] for arm in runs]
    found = {}
    for topic in topics:
        figures = {name: _figures(runs[0], arm, topic) for name, arm in zip(names, runs[1:], strict=True)}
        effects = layout.effects(figures, floor=FLOOR, need_floor=topic in TOPICS[:2])
        made = []
        for number, name in enumerate(names[1:], 2):
            outcome: str = decide(effects.get(name), margin=margins.get(topic, float(np.log1p(MARGIN))))
            cut = float(np.mean([a | b for a, b in zip(cuts[0], cuts[number], strict=True)]))
            if topic == "lengths" and outcome == "same" and cut > CUT_SHARE:
                outcome = "undecided"
            made.append(outcome)
        found[topic] = made
    return found


@dataclass(frozen=True)
class Rates:
    """Shares of the simulated comparisons.

    Attributes:
        any_false: by topic, at least one of the arms that equal the baseline was called better or worse.
        lower, higher, same: by topic, what was said of the first method.
    """

    any_false: dict[str, float]
    lower: dict[str, float]
    higher: dict[str, float]
    same: dict[str, float]


def rates(setting: Setting, *, simulations: int, seed: int = 0, topics: tuple[str, ...] = TOPICS) -> Rates:
    """Simulate many comparisons of one setting.

    Args:
        setting: what is simulated.
        simulations: how many comparisons.
        seed: decides all of them.
        topics: what is judged.
    """
    is_changed = bool(setting.faster or setting.longer)
    tally: dict[str, dict[str, int]] = {
        topic: dict.fromkeys(("false", "lower", "higher", "same"), 0) for topic in topics
    }
    for number in range(simulations):
        found = outcomes(setting, np.random.default_rng([seed, number]), topics)
        for topic, made in found.items():
            equal = made[1:] if is_changed else made
            tally[topic]["false"] += any(outcome in {"lower", "higher"} for outcome in equal)
            if made[0] in tally[topic]:
                tally[topic][made[0]] += 1
    share = {
        key: {topic: tally[topic][key] / simulations for topic in topics}
        for key in ("false", "lower", "higher", "same")
    }
    return Rates(any_false=share["false"], lower=share["lower"], higher=share["higher"], same=share["same"])


def decided_after_plan(
    *, change: float, noise: float, repeats: int, arms: int, simulations: int, seed: int = 0
) -> tuple[int | None, float]:
    """Whether the repeats that are said to decide do decide.

    Args:
        change: the true effect of the method, which the first experiment happened to see exactly.
        noise: standard deviation of a run.
        repeats: of the first experiment.
        arms: in all, the baseline and its A/A run among them.
        simulations: experiments of the planned size.
        seed: decides them.

    Returns:
        the repeats that were said to be missing, and the share of experiments of that size that find the change.
    """
    se = noise * np.sqrt(1.5 / repeats)
    groups = arms - 1
    df = (arms - 1) * (repeats - 1) + 1
    needed = planning.repeats_for(change, float(se * np.sqrt(repeats)), arms, groups, repeats, 0.95, None)
    if needed is None or planning.power(change, float(se), df) >= planning.POWER:
        return None, 1.0
    rng = np.random.default_rng(seed)
    runs = rng.normal(0.0, noise, (simulations, arms, needed))
    runs[:, 2] += change
    found = layout.two_way(runs, [0, 0, *range(1, arms - 1)])
    apart = runs[:, 2] - runs[:, :2].mean(axis=1)
    se_each = np.maximum(found.sd * found.factor[0], apart.std(axis=1, ddof=1) / np.sqrt(needed))
    half = planning.t_quantile(0.975, found.df) * se_each
    return needed - repeats, float(np.mean(np.abs(found.estimate[:, 0]) > half))


def queue_false_alarms(
    *, load: float, drift: float, requests: int, repeats: int, simulations: int, seed: int = 0
) -> float:
    """False latency verdicts where requests queue: first come first served by 8 places, one trace for all runs.

    Args:
        load: share of the places that are busy on average.
        drift: standard deviation of a run's speed.
        requests: in the trace, with Poisson arrivals.
        repeats: of each of 3 arms: baseline, A/A, an equal method.
        simulations: how many comparisons.
        seed: decides them.
    """
    false = 0
    repeat, request = np.repeat(np.arange(repeats), requests), np.tile(np.arange(requests), repeats)
    for number in range(simulations):
        rng = np.random.default_rng([seed, number])
        service_s = rng.lognormal(0.0, 0.6, requests)
        arrivals_s = np.cumsum(rng.exponential(service_s.mean() / PLACES / load, requests))

        def run(
            service_s: Floats = service_s, arrivals_s: Floats = arrivals_s, rng: np.random.Generator = rng
        ) -> Floats:
            served: Floats = service_s * np.exp(rng.normal(0.0, drift)) * rng.lognormal(0.0, 0.01, requests)
            whole: Floats = waits_s(arrivals_s, served) + served
            return whole

        made = [np.concatenate([run() for _ in range(repeats)]) for _ in range(3)]
        arms = {
            name: run_figures.log_ratio(times, made[0], repeat, request)
            for name, times in zip("ab", made[1:], strict=True)
        }
        found = decide(layout.effects(arms, floor="a", need_floor=True)["b"], margin=float(np.log1p(MARGIN)))
        false += found in {"lower", "higher"}
    return false / simulations


PLACES = 8
"""Requests that the simulated server serves at once."""

CAPACITY_RPS = 3.5
"""What it carries with services of log-normal(0, 0.6) seconds where 99 % may wait for at most half a second: found by
simulating 120,000 requests at a rate."""


def waits_s(arrivals_s: Floats, service_s: Floats) -> Floats:
    """How long each request waits, first come first served."""
    free = [0.0] * PLACES
    waited = np.empty(len(service_s))
    for place, (arrival, service) in enumerate(zip(arrivals_s.tolist(), service_s.tolist(), strict=True)):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        waited[place] = start - arrival
    return waited


def capacity_found(requests: int, rng: np.random.Generator, *, warm_up_s: float = 30.0) -> Estimate:
    """A search for the capacity of that server, as ``kvload capacity`` makes it.

    Args:
        requests: that count in every attempt.
        rng: of arrivals, services and draws.
        warm_up_s: what is left out of every attempt.
    """
    attempts: list[tuple[float, int, int]] = []
    stretches: dict[float, tuple[list[int], list[int]]] = {}
    while len(attempts) < 16 and (rate := next_rate(attempts, start_rps=1.0)) is not None:
        left_out = int(warm_up_s * rate)
        count = requests + left_out
        waited = waits_s(np.cumsum(rng.exponential(1 / rate, count)), rng.lognormal(0.0, 0.6, count))
        met = waited[left_out:] <= 0.5
        attempts.append((rate, len(met), int(met.sum())))
        for total, part in zip(stretches.setdefault(rate, ([], [])), crossing.batches(met, 10), strict=True):
            total.extend(part)
    rates = sorted(stretches)
    sent, good = ([sum(stretches[rate][place]) for rate in rates] for place in (0, 1))
    spread = crossing.dispersion(list(stretches.values())) or 1.0
    return crossing.estimate(crossing.draws(rates, sent, good, target=0.99, dispersion=spread, rng=rng), sum(sent))


def main() -> int:
    """Print the calibration table; returns 0 where every row holds its bound, else 1."""
    parser = argparse.ArgumentParser(prog="python -m kvload.scripts.calibrate_verdicts", description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000, help="comparisons simulated for each row")
    parser.add_argument("--quick", action="store_true", help="a tenth of them, to see that it works")
    options = parser.parse_args()
    number = options.simulations // 10 if options.quick else options.simulations
    started = time.monotonic()
    holds = True
    for title, header, rows in _tables(number):
        print(f"\n## {title}\n\n| {' | '.join(header)} | holds |\n|{'---|' * (len(header) + 1)}", flush=True)
        for cells, good in rows:
            holds &= good is not False
            print(f"| {' | '.join(cells)} | {_HELD[good]} |", flush=True)
    print(f"\n{number} simulations a row; {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0 if holds else 1


Row = tuple[list[str], bool | None]
"""Cells, and whether the row's bound holds; None where it has none."""

_HELD = {True: "yes", False: "**no**", None: "–"}


def _tables(number: int) -> Iterator[tuple[str, list[str], Iterator[Row]]]:
    yield (
        "Equal arms, 1000 requests: any false verdict in a family, % (bound: 7, and twice the simulation's own error)",
        ["methods", "repeats", "drift", "diverging", *TOPICS],
        _equal(number),
    )
    yield (
        "Equal arms of which the last one's runs scatter more: any false latency verdict, % (nothing is promised)",
        ["methods", "repeats", "drift", "times as large", "latency"],
        _uneven(number),
    )
    yield "True changes, 1000 requests", ["what", "methods", "repeats", "drift", "found, %"], _changed(number)
    yield "Answers 20 % longer, cut off by max_tokens", ["cut", "longer, %", "same, %"], _cut(number)
    yield (
        "Repeats that are said to decide: how often they do, % (planned for 80)",
        ["change / noise of a run", "repeats", "more", "decided, %"],
        _planned(number),
    )
    yield (
        "Requests that queue, 3 repeats, 600 requests: false latency verdicts, %",
        ["load", "drift", "false, %"],
        _queue(number),
    )
    yield (
        f"kvload capacity on a server that carries {CAPACITY_RPS:g} requests/s at 99 %",
        ["requests an attempt", "estimate / true, median", "interval holds it, %", "bounded on both sides, %"],
        _capacity(number),
    )


def _percent(value: float) -> str:
    return f"{value * 100:.1f}"


def _bound(simulations: int) -> float:
    return 0.07 + 2 * float(np.sqrt(0.05 * 0.95 / simulations))


def _equal(number: int) -> Iterator[Row]:
    for methods in (1, 12):
        for repeats in (1, 2, 3, 5):
            for drift in (0.0, 0.005, 0.01, 0.02):
                for diverging in (0.0, 0.1):
                    setting = Setting(methods=methods, repeats=repeats, drift=drift, diverging=diverging)
                    # Twelve methods take twelve times as long.
                    simulations = number if methods == 1 else number // 2
                    found = rates(setting, simulations=simulations).any_false
                    cells = [str(methods), str(repeats), f"{drift:.1%}", f"{diverging:.0%}"]
                    yield (
                        [*cells, *map(_percent, found.values())],
                        max(found.values()) <= _bound(simulations),
                    )


def _uneven(number: int) -> Iterator[Row]:
    for methods in (1, 3):
        for repeats in (2, 3, 5):
            for uneven in (3.0, 10.0):
                setting = Setting(requests=200, methods=methods, repeats=repeats, uneven=uneven)
                made = rates(setting, simulations=number, topics=("latency",))
                cells = [str(methods), str(repeats), "1.0 %", f"{uneven:g}", _percent(made.any_false["latency"])]
                yield cells, None


def _changed(number: int) -> Iterator[Row]:
    for methods in (1, 2, 12):
        for repeats, drift in ((2, 0.01), (3, 0.005), (3, 0.01), (3, 0.02), (5, 0.01)):
            setting = Setting(methods=methods, repeats=repeats, drift=drift, faster=0.05)
            found = rates(setting, simulations=number, topics=("latency",)).lower["latency"]
            must = repeats >= 3 and drift <= 0.01
            yield (
                ["5 % faster", str(methods), str(repeats), f"{drift:.1%}", _percent(found)],
                found >= 0.95 if must else None,
            )
    for longer in (-0.05, 0.05, -0.1):
        for repeats in (1, 2, 3):
            made = rates(Setting(longer=longer, repeats=repeats), simulations=number, topics=("lengths",))
            found = (made.lower if longer < 0 else made.higher)["lengths"]
            cells = [f"answers {longer:+.0%}", "1", str(repeats), "1.0%", _percent(found)]
            yield cells, found >= 0.95 if repeats > 1 else None


def _cut(number: int) -> Iterator[Row]:
    for cut in (0.0, 0.1, 0.25, 0.4, 0.8, 0.95):
        made = rates(Setting(longer=0.2, cut=cut), simulations=number, topics=("lengths",))
        good = made.same["lengths"] == 0
        yield [f"{cut:.0%}", _percent(made.higher["lengths"]), _percent(made.same["lengths"])], good


def _planned(number: int) -> Iterator[Row]:
    for change, repeats in ((1.0, 2), (1.0, 3), (0.7, 3), (0.5, 3), (1.5, 2)):
        more, share = decided_after_plan(
            change=change * 0.01, noise=0.01, repeats=repeats, arms=4, simulations=10 * number
        )
        yield [f"{change:g}", str(repeats), "none" if more is None else str(more), _percent(share)], share >= 0.77


def _capacity(number: int) -> Iterator[Row]:
    for requests in (400, 1000, 3000):
        found = [capacity_found(requests, np.random.default_rng(seed)) for seed in range(min(number, 200))]
        known = [each.estimate for each in found if each.estimate is not None]
        held = np.mean(
            [
                (each.low is None or each.low <= CAPACITY_RPS) and (each.high is None or each.high >= CAPACITY_RPS)
                for each in found
            ]
        )
        both = np.mean([each.low is not None and each.high is not None for each in found])
        ratio = float(np.median(known)) / CAPACITY_RPS
        cells = [str(requests), f"{ratio:.2f}", _percent(float(held)), _percent(float(both))]
        yield cells, bool(held >= 0.88 and 0.9 <= ratio <= 1.12)


def _queue(number: int) -> Iterator[Row]:
    for load in (0.5, 0.9):
        for drift in (0.0, 0.005, 0.02):
            simulations = min(number, 500)
            found = queue_false_alarms(load=load, drift=drift, requests=600, repeats=3, simulations=simulations)
            yield [f"{load:g}", f"{drift:.1%}", _percent(found)], found <= _bound(simulations)


if __name__ == "__main__":
    sys.exit(main())
