"""When a change counts, and what must be said of it: margins, outcomes, the figures they rest on, what would decide."""

from typing import Literal

from kvload.analysis import words
from kvload.analysis.statistics.layout import Effect
from kvload.analysis.statistics.run_figures import FEWEST_PAIRS

MARGIN = 0.02
"""Relative changes surely smaller than this count as none."""

MISSES_MARGIN = 0.1
"""Attainment counts as the same where surely less than this share of the baseline's misses came or went."""

Unit = Literal["relative", "points"]


def attainment_margin(base_share: float | None) -> float:
    """Changes of attainment within it count as none: relative to what the baseline misses, at most :data:`MARGIN`."""
    return MARGIN if base_share is None else min(MARGIN, MISSES_MARGIN * (1 - base_share))


def quality_margin(base_score: float | None) -> float:
    """Changes of a mean score within it count as none: relative to the baseline's score, which is what can be lost."""
    return MARGIN * (1.0 if base_score is None else base_score)


def decide(effect: Effect | None, *, margin: float) -> Literal["higher", "lower", "same", "undecided", "unmeasured"]:
    """What a change amounts to.

    Args:
        effect: against the baseline; None where nothing was measured.
        margin: changes surely within it count as none.
    """
    if effect is None or effect.change.estimate is None or effect.p_value is None:
        return "unmeasured"
    low, high = effect.change.low, effect.change.high
    if low is not None and high is not None and -margin < low and high < margin:
        return "same"
    if effect.found:
        return "higher" if effect.change.estimate > 0 else "lower"
    return "undecided"


def basis(effect: Effect, unit: Unit, margin: float) -> str:
    """What would have to be true for the verdict to be wrong: interval, runs, correction, noise, margin."""
    against = " against both runs of the baseline" if effect.noise is not None else ""
    parts = [words.change_text(effect.change, unit) + against]
    if effect.repeats == 1:
        runs = "one run each"
        if effect.df:
            runs += f", so that a change must exceed 11 times the A/A difference ({_amount(effect.run_half, unit)})"
    else:
        runs = f"{effect.repeats} runs each of {effect.arms} arms"
    if effect.df:
        runs += f" (t, {words.plural(effect.df, 'degree')} of freedom)"
    if effect.scattered:
        runs += ", by the noise of this arm's own runs, which differ more than the others'"
    wider = effect.request_half is not None and (effect.run_half or 0.0) < effect.request_half
    parts.append(f"from {runs}" + (f", widened to what {effect.requests:,} requests vary by" if wider else ""))
    if effect.adjusted_p is not None:
        family = f", adjusted over {effect.family} methods (Holm)" if effect.family > 1 else ""
        parts.append(f"p {words.p_text(effect.adjusted_p)}{family}")
    if effect.noise is not None:
        parts.append(f"these two differ by {_amount(effect.noise, unit)}")
    parts.append(f"changes within {_amount(margin, unit)} count as none")
    return "; ".join(parts)


def _amount(value: float | None, unit: Unit) -> str:
    if value is None:
        return words.ABSENT
    return f"{words.number(value * 100, 2)} {'points' if unit == 'points' else '%'}"


def advice(effect: Effect | None, *, floor: bool = True) -> str:
    """What would decide where nothing was decided."""
    if effect is not None and effect.requests < FEWEST_PAIRS:
        return f"only {words.plural(effect.requests, 'request')} could be paired; {FEWEST_PAIRS} are the least"
    if effect is None or effect.p_value is None:
        return "" if floor else "run the baseline twice (no --no-floor): nothing shows how much equal runs differ"
    more = []
    if effect.plan.repeats:
        more.append(f"{words.plural(effect.plan.repeats, 'more repeat')} of all arms")
    if effect.plan.requests:
        more.append(f"{words.plural(effect.plan.requests, 'more request')}")
    if not more:
        return "no reasonable number of repeats or requests would decide: the change is too small for this noise"
    return f"about {' and '.join(more)} would decide in 4 of 5 cases, if the figures stay as they are"
