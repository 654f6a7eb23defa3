"""What each run says about each question: the figures that the two-way layout judges (see statistics/layout.py).

======== ===========================================================================================================
latency  log of the summed time at the baseline's lengths: TTFT (queue and prefill) and time per token, over pairs in
         which both answers began. How long an answer became has no part in it.
ttft ..  log of the summed TTFT, TPOT, E2E over answered pairs; as information
lengths  mean log ratio of tokens, censored pairs as far as they are certain
service  share of sent requests that met the limits; in a closed loop good requests per second
quality  mean score
======== ===========================================================================================================
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kvload.analysis.comparison import lengths
from kvload.analysis.comparison.decompose import times_at_base_length
from kvload.analysis.records import latency
from kvload.analysis.records.outcome import censored
from kvload.analysis.records.pairs import LoadedArm, Pairs
from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.analysis.run import slo
from kvload.analysis.run.slo import goodput_window_s
from kvload.analysis.statistics import run_figures, significance
from kvload.analysis.statistics.run_figures import RunFigures

LATENCIES = ("ttft", "tpot", "e2e")


def latency_figures(pairs: Pairs) -> dict[str, RunFigures]:
    """``latency`` and its parts, as logs of ratios of sums."""
    times = times_at_base_length(pairs)
    found = {
        "latency": run_figures.log_ratio(
            times.other_s, times.base_s, pairs.repeat[times.rows], pairs.request[times.rows]
        )
    }
    for name in LATENCIES:
        base, other, rows = known_latency(name, pairs)
        found[name] = run_figures.log_ratio(other, base, pairs.repeat[rows], pairs.request[rows])
    return found


def known_latency(name: str, pairs: Pairs) -> tuple[Floats, Floats, Ints]:
    """A latency in seconds under the baseline and under the arm, and the rows of the answered pairs that have both."""
    base, other = latency.METRICS[name](pairs.base), latency.METRICS[name](pairs.other)
    rows = np.flatnonzero(pairs.answered & ~np.isnan(base) & ~np.isnan(other))
    return base[rows], other[rows], rows


def length_figures(pairs: Pairs) -> RunFigures:
    """The mean log ratio of tokens."""
    rows = np.flatnonzero(lengths.measured(pairs))
    ratio = lengths.certain_log_ratio(
        pairs.base.output_tokens[rows],
        pairs.other.output_tokens[rows],
        censored(pairs.base)[rows],
        censored(pairs.other)[rows],
    )
    found = run_figures.mean_change(ratio, pairs.repeat[rows], pairs.request[rows])
    return replace(found, test_p=significance.wilcoxon(ratio, pairs.request[rows]).p_value)


def met_limits(pairs: Pairs, limits_s: Mapping[str, float]) -> tuple[Bools, Bools, Ints]:
    """Which requests met all limits under the baseline and under the arm, and the rows of the pairs sent in both."""
    rows = np.flatnonzero(pairs.base.sent & pairs.other.sent)
    return slo.meets_all(pairs.base, limits_s)[rows], slo.meets_all(pairs.other, limits_s)[rows], rows


def service_figures(
    base: LoadedArm, other: LoadedArm, pairs: Pairs, limits_s: Mapping[str, float]
) -> dict[str, RunFigures]:
    """``attainment`` in shares, ``goodput`` relative to the baseline's mean; ``goodput`` is missing where it was 0."""
    before, after, rows = met_limits(pairs, limits_s)
    repeat, request = pairs.repeat[rows], pairs.request[rows]
    change = after.astype(np.float64) - before
    share = run_figures.mean_change(change, repeat, request, bounded=True)
    share = replace(share, test_p=significance.mcnemar(before, after, request).p_value)
    found = {"attainment": share}
    rates = {}
    for number in pairs.population.repeats:
        windows = [goodput_window_s(arm.runs[number].table, arm.runs[number].manifest) for arm in (base, other)]
        if windows[0] and windows[1]:
            mine = repeat == number
            rates[number] = (before[mine].sum() / windows[0], after[mine].sum() / windows[1])
    mean_rate = float(np.mean([rate for rate, _ in rates.values()])) if rates else 0.0
    mean_share = float(before.mean()) if len(before) else 0.0
    if mean_rate > 0 and share.request_se is not None:
        found["goodput"] = RunFigures(
            by_repeat={number: float((good - was) / mean_rate) for number, (was, good) in rates.items()},
            request_se=share.request_se / mean_share,
            requests=share.requests,
            least_half=share.least_half / mean_share,
        )
    return found
