"""What a comparison means, in words, and only where the intervals allow it.

A change is found where its interval excludes 0 and, if the baseline ran twice, where it also goes beyond what the two
equal runs differ by. It is called the same where its interval lies within the margin. Otherwise there is no verdict,
but the number of further requests that would bring one, if the figures stay as they are: intervals shrink with the
square root of n.
"""

import math
from dataclasses import dataclass

from kvload.analysis import words
from kvload.analysis.comparison.answers import ArmQuality
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.model import ArmComparison, Finding, Verdict
from kvload.analysis.statistics.estimates import Estimate

MARGIN = 0.02
"""Relative changes surely smaller than this count as none."""

_MOST_NEEDED = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Decision:
    """``higher``, ``lower``, ``same``, ``undecided`` or ``unmeasured``, and the requests still needed."""

    outcome: str
    needed: int | None = None


def decide(
    change: Estimate, *, beyond: Estimate | None = None, noise: Estimate | None = None, margin: float = MARGIN
) -> Decision:
    """Decide what a change amounts to.

    Args:
        change: relative to the baseline; 0 is no change.
        beyond: the change less the A/A pair's, where there is a floor.
        noise: the A/A pair's own change.
        margin: changes surely within it count as none.
    """
    if change.estimate is None or change.half_width is None:
        return Decision(outcome="unmeasured")
    judged = change if beyond is None or beyond.estimate is None else beyond
    if _found(change, judged, noise):
        return Decision(outcome="higher" if change.estimate > 0 else "lower")
    if judged.low is not None and judged.high is not None and -margin < judged.low and judged.high < margin:
        return Decision(outcome="same")
    return Decision(outcome="undecided", needed=more_needed(judged, margin))


def _found(change: Estimate, judged: Estimate, noise: Estimate | None) -> bool:
    if change.estimate is None or judged.estimate is None or not (change.excludes(0.0) and judged.excludes(0.0)):
        return False
    # One run's drift is common to all its requests, and resampling requests cannot see it; the A/A pair can.
    beyond_noise = noise is None or noise.estimate is None or abs(change.estimate) > abs(noise.estimate)
    return beyond_noise and change.estimate * judged.estimate > 0


def more_needed(change: Estimate, margin: float = MARGIN) -> int | None:
    """About how many more requests would show the change, or show that it is within the margin.

    None where the change sits on the margin, where the interval already excludes 0 (what stands against a verdict then
    is drift between runs, which more requests do not settle), or where the number is beyond reason.
    """
    half, size = change.half_width, abs(change.estimate or 0.0)
    if half is None or change.excludes(0.0):
        return None
    widths = [width for width in (size, margin - size) if width > 0]
    if not widths:
        return None
    needed = math.ceil(change.n * ((half / max(widths)) ** 2 - 1))
    return max(needed, 1) if needed < _MOST_NEEDED else None


def judge(
    *,
    base: ArmSummary,
    arm: ArmSummary,
    change: ArmComparison,
    floor: ArmComparison | None,
    mode: str,
    quality: ArmQuality | None = None,
    noise: ArmQuality | None = None,
) -> Verdict:
    """The verdict on one arm.

    Args:
        base: the baseline by itself.
        arm: the arm by itself.
        change: the arm against the baseline.
        floor: the A/A pair, if it was measured.
        mode: ``free`` or ``forced``.
        quality: of the arm's answers, if there is anything to score.
        noise: of the answers of the baseline's second run.
    """
    findings = [
        _capacity(base, arm, change, floor),
        _latency(change, floor),
        _lengths(change, floor, mode),
        _quality(quality, noise, mode),
    ]
    return Verdict(arm=arm.name, headline=_headline(change, findings), findings=findings)


def _headline(change: ArmComparison, findings: list[Finding]) -> str:
    parts = [
        finding.text.split(":")[0].split(" (")[0] for finding in findings if finding.outcome in {"better", "worse"}
    ]
    if eaten := eaten_text(change):
        parts.append(eaten.split(" (")[0])
    same = [finding.topic for finding in findings if finding.outcome == "same"]
    undecided = [finding.topic for finding in findings if finding.outcome == "undecided"]
    if same:
        parts.append(f"{' and '.join(same)} unchanged")
    if undecided:
        parts.append(f"no verdict on {' and '.join(undecided)}")
    return "; ".join(parts) if parts else "nothing could be judged"


def change_text(value: Estimate, noise: Estimate | None = None, digits: int = 1) -> str:
    """``-14.2 % (95 %: -16.0 % to -12.1 %; A/A +0.4 %)``."""
    text = words.signed_share(value.estimate, digits)
    parts = []
    if value.low is not None and value.high is not None:
        low, high = words.signed_share(value.low, digits), words.signed_share(value.high, digits)
        parts.append(f"{words.level_of(value)}: {low} to {high}")
    if noise is not None and noise.estimate is not None:
        parts.append(f"A/A {words.signed_share(noise.estimate, digits)}")
    return f"{text} ({'; '.join(parts)})" if parts else text


def _capacity(base: ArmSummary, arm: ArmSummary, change: ArmComparison, floor: ArmComparison | None) -> Finding:
    parts = []
    if base.pool_tokens and arm.pool_tokens:
        parts.append(f"the cache holds {arm.pool_tokens / base.pool_tokens:.2f} times the tokens")
    if base.info.bytes_per_token and arm.info.bytes_per_token:
        ratio = base.info.bytes_per_token / arm.info.bytes_per_token
        parts.append(f"a token takes 1/{ratio:.2f} of the bytes")
    if change.slo is None:
        parts.append("no limits were given, so there is no goodput to compare (--slo)")
        return Finding(topic="capacity", outcome="unmeasured", text="; ".join(parts))
    noise = floor.slo.difference if floor and floor.slo else None
    found = decide(change.slo.difference, beyond=change.slo.beyond_floor, noise=noise)
    outcome = found.outcome
    if outcome in {"higher", "lower"} and not change.slo.test.rejects(change.slo.difference.level):
        outcome = "undecided"
    shares = (
        f"{words.share(base.attainment.estimate)} to {words.share(arm.attainment.estimate)}"
        if (base.attainment and arm.attainment)
        else ""
    )
    verb = {"higher": "attainment rises", "lower": "attainment falls", "same": "attainment stays"}.get(outcome)
    lead = f"{verb or 'no verdict on attainment'} ({shares}, {_points(change.slo.difference)})"
    test = change.slo.test
    parts.insert(
        0,
        f"{lead}: {change.slo.lost} requests no longer meet the limits and {change.slo.won} newly do"
        f" ({test.method} p {p_text(test.p_value)}), goodput {change_text(change.slo.goodput)}",
    )
    outcomes = {"higher": "better", "lower": "worse"}
    return _finding("capacity", outcomes.get(outcome, outcome), "; ".join(parts), found.needed)


def _points(value: Estimate) -> str:
    if value.estimate is None:
        return words.ABSENT
    text = f"{value.estimate * 100:+.1f} points"
    if value.low is None or value.high is None:
        return text
    return f"{text}, {words.level_of(value)}: {value.low * 100:+.1f} to {value.high * 100:+.1f}"


def p_text(p_value: float | None) -> str:
    """A p-value as it is read."""
    if p_value is None:
        return words.ABSENT
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def _latency(change: ArmComparison, floor: ArmComparison | None) -> Finding:
    e2e = change.latency["e2e"]
    noise = floor.latency["e2e"].relative if floor else None
    found = decide(e2e.relative, beyond=e2e.beyond_floor, noise=noise)
    if found.outcome == "unmeasured":
        return Finding(topic="latency", outcome="unmeasured", text="no pair was answered on both sides")
    size = words.share(abs(e2e.relative.estimate or 0.0))
    lead = {
        "higher": f"requests take {size} longer",
        "lower": f"requests are {size} faster",
        "same": "requests take as long as before",
    }.get(found.outcome, "no verdict on E2E")
    each = [
        f"{words.METRIC_NAMES[name]} {change_text(value.relative, floor.latency[name].relative if floor else None)}"
        for name, value in change.latency.items()
        if value.relative.estimate is not None
    ]
    parts = [f"{name} {signed_seconds(part.estimate)}" for name, part in change.decomposition.parts.items()]
    text = f"{lead}: {', '.join(each)}; E2E {signed_seconds(change.decomposition.total.estimate)} = {', '.join(parts)}"
    return _finding(
        "latency", {"higher": "worse", "lower": "better"}.get(found.outcome, found.outcome), text, found.needed
    )


def signed_seconds(value_s: float | None) -> str:
    """A change of a time, with its sign."""
    if value_s is None:
        return words.ABSENT
    return ("+" if value_s > words.ROUNDING_S else "") + words.seconds(value_s)


def _lengths(change: ArmComparison, floor: ArmComparison | None, mode: str) -> Finding:
    lengths = change.lengths
    if lengths is None:
        reason = "the run forced them" if mode == "forced" else "every request forced its own"
        return Finding(topic="lengths", outcome="unmeasured", text=f"answer lengths say nothing: {reason}")
    noise = floor.lengths.ratio_mean.shifted(-1.0) if floor and floor.lengths else None
    # The mean ratio of two equally noisy runs lies above 1; without a floor to hold it against, only the ratio of all
    # tokens can be judged.
    ratio = (lengths.ratio_total if noise is None else lengths.ratio_mean).shifted(-1.0)
    found = decide(ratio, beyond=lengths.beyond_floor, noise=noise)
    if found.outcome == "unmeasured":
        return Finding(topic="lengths", outcome="unmeasured", text="no pair was answered on both sides")
    size = words.share(abs(ratio.estimate or 0.0))
    lead = {
        "higher": f"answers are {size} longer",
        "lower": f"answers are {size} shorter",
        "same": "answers are as long as before",
    }.get(found.outcome, "no verdict on answer lengths")
    what = "all tokens" if noise is None else "the mean ratio"
    tails = (
        f"{words.share(lengths.grown.estimate)} grew by half or more, {words.share(lengths.shrunk.estimate)} shrank by"
        " half or more"
    )
    text = f"{lead}: {change_text(ratio, noise)} in {what}; {tails}"
    if eaten := eaten_text(change):
        text += f"; {eaten}"
    if lengths.capped.estimate:
        text += (
            f"; {words.share(lengths.capped.estimate)} of pairs have an answer cut off at max_tokens, of unknown length"
        )
    outcome = {"higher": "worse", "lower": "better"}.get(found.outcome, found.outcome)
    return _finding("lengths", outcome, text, found.needed)


def eaten_text(change: ArmComparison) -> str | None:
    """How much of the speed-up longer answers take away, where the intervals show it."""
    eaten = change.decomposition.eaten
    if change.lengths is None or eaten is None or eaten.estimate is None or not eaten.excludes(0.0):
        return None
    bounds = f" ({words.level_of(eaten)}: {words.share(_abs(eaten.low), 0)} to {words.share(_abs(eaten.high), 0)})"
    if eaten.estimate < 0:
        return f"shorter answers add {words.share(-eaten.estimate, 0)} to the speed-up" + bounds
    return f"longer answers eat {words.share(eaten.estimate, 0)} of the speed-up" + bounds


def _quality(quality: ArmQuality | None, noise: ArmQuality | None, mode: str) -> Finding:
    if quality is None or not quality.overall.n:
        reason = "lengths were forced" if mode == "forced" else "no answers were kept"
        return Finding(topic="quality", outcome="unmeasured", text=f"quality says nothing: {reason}")
    overall = quality.overall
    if quality.by_agreement and noise is None:
        text = (
            f"answers agree with the baseline's to {words.score(overall.arm_mean)} ({overall.scorer}), which says"
            " nothing without a second run of the baseline beside it"
        )
        return Finding(topic="quality", outcome="unmeasured", text=text)
    found = decide(overall.difference, beyond=quality.beyond_floor, noise=noise.overall.difference if noise else None)
    if found.outcome == "unmeasured":
        return Finding(topic="quality", outcome="unmeasured", text="no request was scored on both sides")
    size = f"{abs((overall.difference.estimate or 0.0) * 100):.1f} points"
    lead = {
        "higher": f"scores rise by {size}",
        "lower": f"scores fall by {size}",
        "same": "scores stay",
    }.get(found.outcome, "no verdict on quality")
    aside = f"; A/A {words.points(noise.overall.difference.estimate)}" if noise else ""
    means = f"{words.score(overall.base_mean)} to {words.score(overall.arm_mean)} on average"
    text = f"{lead}: {means} ({overall.scorer}; {_points(overall.difference)}{aside})"
    for count in quality.negatives:
        beside = f", A/A {count.floor_negative}" if count.floor_negative is not None else ""
        text += f"; {count.negative} negative samples at {words.share(count.theta, 0)} (mirror {count.mirror}{beside})"
    outcome = {"higher": "better", "lower": "worse"}.get(found.outcome, found.outcome)
    return _finding("quality", outcome, text, found.needed)


def _abs(value: float | None) -> float | None:
    return None if value is None else abs(value)


def _finding(topic: str, outcome: str, text: str, needed: int | None) -> Finding:
    if outcome == "undecided":
        text += "; "
        if needed:
            text += f"about {needed:,} more requests would decide"
        else:
            text += "more repeats of all arms, rather than more requests, would decide"
    return Finding(topic=topic, outcome=outcome, text=text, needed=needed if outcome == "undecided" else None)
