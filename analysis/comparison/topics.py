"""What is said about each topic: one finding a topic, in a plain sentence and the figures behind it."""

import math
from dataclasses import dataclass
from typing import Literal

from kvload.analysis import words
from kvload.analysis.comparison.answers import ArmQuality
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.decision import (
    MARGIN,
    advice,
    attainment_margin,
    basis,
    decide,
    quality_margin,
)
from kvload.analysis.comparison.lengths import CUT_SHARE, LengthChange
from kvload.analysis.comparison.model import ArmComparison, Comparison, Finding, Outcome
from kvload.analysis.statistics.layout import Effect
from kvload.analysis.statistics.run_figures import FEWEST_PAIRS

USED_MARGIN = 0.15
"""Shares of the pool that were scraped differ by as much (a log ratio) between equal servers."""

NOBODY, EVERYBODY = 0.05, 0.95
"""Where both arms attain less, or more, the load tells nothing about them."""


@dataclass(frozen=True)
class Seen:
    """What a finding may look at: one arm, the baseline, the A/A pair."""

    comparison: Comparison
    base: ArmSummary
    arm: ArmSummary
    change: ArmComparison
    floor: ArmComparison | None
    quality: ArmQuality | None
    floor_quality: ArmQuality | None
    perturbed_quality: ArmQuality | None

    @classmethod
    def of(cls, comparison: Comparison, name: str) -> "Seen":
        """One arm of a comparison whose figures are complete."""
        floor = comparison.floor
        scored = comparison.answers.arms if comparison.answers else {}
        return cls(
            comparison=comparison,
            base=comparison.baseline,
            arm=next(arm for arm in comparison.arms if arm.name == name),
            change=next(change for change in comparison.comparisons if change.name == name),
            floor=floor,
            quality=scored.get(name),
            floor_quality=scored.get(floor.name) if floor else None,
            perturbed_quality=scored.get(comparison.perturbed.name) if comparison.perturbed else None,
        )

    def effect(self, question: str) -> Effect | None:
        """The arm's effect in one question."""
        return self.change.effects.get(question)


def latency(seen: Seen) -> Finding:
    """Judged on prefill and speed: what a request takes at the baseline's answer lengths."""
    effect = seen.effect("latency")
    if effect is None:
        return Finding(topic="latency", outcome="unmeasured", lead="no pair was answered on both sides")
    found = decide(effect, margin=MARGIN)
    size = words.share(abs(effect.change.estimate or 0.0))
    lead = {
        "higher": f"requests are {size} slower at equal answer lengths",
        "lower": f"requests are {size} faster at equal answer lengths",
        "same": "requests take as long as before at equal answer lengths",
    }.get(found, "no verdict on latency")
    detail = [basis(effect, "relative", MARGIN), _latencies(seen.change), _decomposition(seen.change)]
    if found == "lower" and (eaten := _eaten(seen.change)):
        detail.append(eaten)
    if seen.change.lengths and seen.change.lengths.unstarted:
        number = words.plural(seen.change.lengths.unstarted, "pair")
        detail.append(f"{number} with a request that gave no answer at all are in no latency; they miss every limit")
    return _finding("latency", found, ("worse", "better"), lead, detail, effect, MARGIN, seen.floor is not None)


def _latencies(change: ArmComparison) -> str:
    told = "queueing" in change.decomposition.parts
    names = {"ttft": "TTFT" if told else words.WAIT_AND_PREFILL, "tpot": "TPOT", "e2e": "E2E"}
    return "; ".join(
        f"{names[name]} {words.change_text(value.relative)}"
        for name, value in change.latency.items()
        if value.relative.estimate is not None
    )


def _decomposition(change: ArmComparison) -> str:
    parts = change.decomposition.parts
    names = {"prefill": "prefill" if "queueing" in parts else words.WAIT_AND_PREFILL}
    each = [f"{names.get(name, name)} {words.signed_seconds(part.estimate)}" for name, part in parts.items()]
    return f"E2E {words.signed_seconds(change.decomposition.total.estimate)} a request = {', '.join(each)}"


def _eaten(change: ArmComparison) -> str | None:
    """How much of the speed-up longer answers take away; only asked where there is a speed-up beyond the noise."""
    eaten = change.decomposition.eaten
    if change.lengths is None or eaten is None or eaten.estimate is None or not eaten.excludes(0.0):
        return None
    low, high = sorted(abs(end) for end in (eaten.low or 0.0, eaten.high or 0.0))
    bounds = f"({words.level_of(eaten)} over requests: {words.share(low, 0)} to {words.share(high, 0)})"
    if eaten.estimate < 0:
        return f"shorter answers add {words.share(-eaten.estimate, 0)} to the speed-up {bounds}"
    return f"longer answers eat {words.share(eaten.estimate, 0)} of the speed-up {bounds}"


def service(seen: Seen) -> Finding:
    """Meeting the limits: attainment, or goodput where the server sets the pace."""
    met = seen.change.slo
    if met is None:
        return Finding(
            topic="service",
            outcome="unmeasured",
            lead="no limits were given, so there is no attainment or goodput to compare",
            advice="give limits by --slo ttft=500ms,tpot=50ms",
        )
    if met.base_share is None or met.share is None:
        return Finding(topic="service", outcome="unmeasured", lead="no request was sent in both arms")
    closed = seen.comparison.closed_loop
    effect = seen.effect("service")
    margin = MARGIN if closed else attainment_margin(met.base_share)
    unit: Literal["relative", "points"] = "relative" if closed else "points"
    found = decide(effect, margin=margin)
    shares = f"{words.share(met.base_share)} to {words.share(met.share)}"
    detail = [] if effect is None else [basis(effect, unit, margin)]
    test = met.test
    detail.append(
        f"attainment {shares}; {words.plural(met.lost, 'request')} no longer meet the limits and {met.won:,} newly do"
        f" ({test.method} p {words.p_text(test.p_value)})"
    )
    if met.goodput.estimate is not None:
        detail.append(f"goodput over the arrival window {words.change_text(met.goodput)}")
    if found not in {"higher", "lower"} and (end := _no_strain(seen, met.base_share, met.share)):
        lead, what = end
        return Finding(
            topic="service",
            outcome="unmeasured",
            lead=lead,
            detail=tuple(detail),
            advice=what,
            effect=effect,
            unit=unit,
            margin=margin,
        )
    moved = "goodput" if closed else "attainment"
    size = words.change_text(met.goodput).split(" (")[0] if closed else shares
    lead = {
        "higher": f"{moved} rises ({size})",
        "lower": f"{moved} falls ({size})",
        "same": f"{moved} stays ({size})",
    }.get(found, f"no verdict on {moved} ({size})")
    return _finding("service", found, ("better", "worse"), lead, detail, effect, margin, seen.floor is not None, unit)


def _no_strain(seen: Seen, base: float, share: float) -> tuple[str, str] | None:
    """Where a load tells nothing because nobody, or everybody, meets the limits: which, and what to change."""
    if base < NOBODY and share < NOBODY:
        limits = seen.base.attainment_by_metric
        worst = min(limits, key=lambda name: limits[name].estimate or 0.0, default="e2e")
        name = words.METRIC_NAMES[worst]
        return f"cannot tell: nobody met {name} under either", "lower --rate, or loosen the limit"
    if base > EVERYBODY and share > EVERYBODY:
        return (
            f"cannot tell: nearly everybody met the limits under both ({words.share(base)}, {words.share(share)})",
            "raise --rate until requests miss, or search for the capacity (kvload capacity)",
        )
    return None


def lengths(seen: Seen) -> Finding:
    """Judged on the mean log ratio, with cut answers as long as they surely were."""
    found = seen.change.lengths
    if found is None:
        reason = "the run forced them" if seen.comparison.mode == "forced" else "every request forced its own"
        return Finding(topic="lengths", outcome="unmeasured", lead=f"answer lengths say nothing: {reason}")
    if not found.n:
        return Finding(topic="lengths", outcome="unmeasured", lead="no pair has an answer on both sides")
    raise_cap = _cap_advice(found)
    if found.informative < FEWEST_PAIRS and found.both_cut:
        return Finding(
            topic="lengths",
            outcome="unmeasured",
            lead=f"{found.both_cut:,} of {found.n:,} answers were cut off under both: how long they are is unknown",
            advice=raise_cap,
        )
    effect = seen.effect("lengths")
    outcome = decide(effect, margin=MARGIN)
    cut = found.capped.estimate or 0.0
    if outcome == "same" and cut > CUT_SHARE:
        outcome = "undecided"
    size = words.share(abs(effect.change.estimate or 0.0)) if effect else ""
    least = _bound(found, outcome) if cut else ""
    lead = {
        "higher": f"answers are {least}{size} longer",
        "lower": f"answers are {least}{size} shorter",
        "same": "answers are as long as before",
    }.get(outcome, "no verdict on answer lengths")
    detail = [] if effect is None else [basis(effect, "relative", MARGIN) + " (geometric mean of the ratios)"]
    detail.append(
        f"{words.share(found.grown.estimate)} grew by half or more, {words.share(found.shrunk.estimate)} shrank by half"
        f" or more; all tokens {words.signed_share(_less_one(found.ratio_total.estimate))}"
    )
    what = None
    if cut:
        late = f", {found.cut_by_time:,} of them by time" if found.cut_by_time else ""
        detail.append(
            f"{words.share(cut)} of pairs have a cut answer{late}, of unknown length:"
            f" {found.other_cut_alone:,} under the arm alone, {found.base_cut_alone:,} under the baseline alone,"
            f" {found.both_cut:,} under both"
        )
        what = raise_cap
    if outcome == "undecided":
        more = advice(effect)
        what = "; ".join(part for part in (raise_cap if cut > CUT_SHARE else "", more) if part)
    return _finding("lengths", outcome, ("worse", "better"), lead, detail, effect, MARGIN, True, what=what)


def _bound(found: LengthChange, outcome: str) -> str:
    """Whether a change of cut answers is at least what was seen: where it is the longer ones that were cut."""
    longer, shorter = found.other_cut_alone, found.base_cut_alone
    if outcome == "lower":
        longer, shorter = shorter, longer
    return "at least " if longer >= shorter else "about "


def _less_one(value: float | None) -> float | None:
    return None if value is None else value - 1


def _cap_advice(found: LengthChange) -> str:
    if found.cut_by_time:
        return "raise --timeout, or lower --rate: answers were cut by time"
    longest = max([*found.curve_base.lengths, *found.curve_other.lengths], default=0.0)
    if found.enough_tokens is None:
        return f"raise --max-tokens beyond {longest:,.0f}"
    step = 10 ** max(len(str(found.enough_tokens)) - 2, 0)
    return f"raise --max-tokens to about {-(-found.enough_tokens // step) * step:,}"


def quality(seen: Seen) -> Finding:
    """Scores against the expected answers."""
    mine = seen.quality
    if mine is None:
        reason = "lengths were forced" if seen.comparison.mode == "forced" else "no answers were kept"
        return Finding(topic="quality", outcome="unmeasured", lead=f"quality says nothing: {reason}")
    overall = mine.overall
    if not overall.n:
        return Finding(
            topic="quality",
            outcome="unmeasured",
            lead="quality says nothing: the trace has no expected answers",
            advice="whether answers are the baseline's stands under 'answers'; a trace with 'expected' can be scored",
        )
    effect = seen.effect("quality")
    margin = quality_margin(overall.base_mean)
    found = decide(effect, margin=margin)
    means = f"{words.score(overall.base_mean)} to {words.score(overall.arm_mean)}"
    if not overall.base_mean and found not in {"higher", "lower"}:
        return Finding(
            topic="quality",
            outcome="unmeasured",
            lead=f"the baseline itself scores 0.000 ({overall.scorer}), so that nothing can fall",
            detail=(f"{means} on average over {overall.n:,} answers",),
            advice="easier questions, a larger model, or another scorer",
            effect=effect,
            unit="points",
            margin=margin,
        )
    size = f"{abs((effect.change.estimate if effect else 0.0) or 0.0) * 100:.1f} points"
    lead = {
        "higher": f"scores rise by {size} ({means})",
        "lower": f"scores fall by {size} ({means})",
        "same": f"scores stay ({means})",
    }.get(found, f"no verdict on scores ({means})")
    detail = [] if effect is None else [basis(effect, "points", margin) + f"; scorer: {overall.scorer}"]
    if primary := min(mine.negatives, key=lambda count: count.theta, default=None):
        if primary.eligible:
            beside = "" if primary.floor_negative is None else f", A/A {primary.floor_negative:,}"
            detail.append(
                f"{primary.negative:,} of {primary.eligible:,} good answers fell by {words.share(primary.theta, 0)} or"
                f" more, {primary.mirror:,} rose by as much{beside}: net {primary.negative - primary.mirror:+,}"
            )
        else:
            detail.append("no answer of the baseline reaches the gate, so that no sample can be negative")
    if effect is not None and effect.change.estimate == 0 and effect.requests:
        detail.append(f"no score changed; a change in up to {words.share(3 / effect.requests)} of them is not excluded")
    return _finding("quality", found, ("better", "worse"), lead, detail, effect, margin, True, "points")


def answers(seen: Seen) -> Finding | None:
    """How far the texts are the baseline's; neither good nor bad."""
    texts = seen.quality.texts if seen.quality else None
    if texts is None or not texts.n:
        return None
    measure = seen.perturbed_quality or seen.floor_quality
    again = measure.texts if measure else None
    effect = seen.effect("answers")
    same = round((texts.identical.estimate or 0.0) * texts.n)
    detail = [f"identical {words.share(texts.identical.estimate)} ({words.share_range(texts.identical)})"]
    if texts.first_other is not None:
        detail.append(f"those that differ do so from {texts.unit} {texts.first_other:,.0f} on (median)")
    if texts.agreement is not None:
        detail.append(f"agreement {texts.agreement:.2f} (ROUGE-L with the baseline's answer; not a score)")
    lead = f"{texts.n - same:,} of {texts.n:,} answers differ from the baseline's"
    if same == texts.n:
        return Finding(
            topic="answers",
            outcome="same",
            lead=f"all {texts.n:,} answers are the baseline's to the letter",
            detail=(f"that up to {words.share(3 / texts.n)} of all answers differ is not excluded",),
        )
    if again is None:
        return Finding(
            topic="answers",
            outcome="undecided",
            lead=lead,
            detail=tuple(detail),
            advice="run the baseline twice: many answers differ between two runs of one server as well",
        )
    if again.identical.estimate == 1.0 and seen.perturbed_quality is None:
        detail.append(
            "the two runs of the baseline are identical to the letter, which says nothing of how easily greedy decoding"
            " tips over: another dtype or batch order alone changes answers"
        )
        return Finding(
            topic="answers",
            outcome="differs",
            lead=lead,
            detail=tuple(detail),
            advice="--floor perturb runs the baseline in another dtype too, to see how many answers that alone changes",
        )
    what = "two runs of the baseline" if seen.perturbed_quality is None else "the baseline and itself in another dtype"
    others = words.share(1 - (again.identical.estimate or 0.0))
    detail.append(f"between {what} {others} differ")
    found = decide(effect, margin=MARGIN)
    if effect is not None:
        detail.insert(0, f"differing beyond {what}: " + basis(effect, "points", MARGIN))
    outcome: Outcome = {"higher": "differs", "lower": "same"}.get(found, found)  # type: ignore[assignment]
    if found == "higher":
        lead += f", more than between {what} ({others})"
    elif found in {"same", "lower"}:
        lead += f", no more than between {what}"
    return Finding(
        topic="answers",
        outcome=outcome,
        lead=lead,
        detail=tuple(detail),
        advice=advice(effect) if outcome == "undecided" else None,
        effect=effect,
        unit="points",
        margin=MARGIN,
    )


def cache_room(seen: Seen) -> Finding:
    """Pool and bytes as claimed and verified, and what this traffic really took."""
    room = seen.change.room
    detail = []
    if room.base_bytes and room.bytes:
        where = "" if room.claim_tokens is None else f" in a sequence of {room.claim_tokens:,} tokens"
        against = {2: ", 16-bit elements", 4: ", float32 elements: a 16-bit deployment gains half of this"}
        detail.append(
            f"by its claim a token takes {room.bytes:,.0f} bytes{where}, 1/{room.base_bytes / room.bytes:.2f} of the"
            f" baseline's {room.base_bytes:,.0f}{against.get(room.element_bytes or 0, '')}"
        )
    if room.used_ratio is not None and room.tokens_per_request is not None:
        detail.append(
            f"this traffic, at {room.tokens_per_request:,.0f} tokens a request in flight, took 1/{room.used_ratio:.2f}"
            " of the baseline's share of the pool for as many tokens"
        )
    if room.verified is not None:
        detail.append("the server passed its verification" if room.verified else "the server failed its verification")
    if room.pool_ratio is None and room.used_ratio is None:
        return Finding(
            topic="cache room", outcome="unmeasured", lead="the servers do not tell their pools", detail=tuple(detail)
        )
    # An evicting method has the pool of the baseline and holds fewer tokens of every request in it. Scrapes are few, so
    # that what was used counts only well beyond what two equal servers differ by.
    used = room.used_ratio if _is_measured(seen) else None
    ratio = max([value for value in (room.pool_ratio, used) if value is not None], default=1.0)
    outcome: Outcome = "better" if ratio > 1 + MARGIN else "worse" if ratio < 1 - MARGIN else "same"
    if room.pool_ratio is not None and (used is None or room.pool_ratio * (1 + USED_MARGIN) >= used):
        sizes = f"{room.base_pool_tokens:,} to {room.pool_tokens:,}"
        lead = f"the cache holds {room.pool_ratio:.2f} times the tokens ({sizes})"
    else:
        lead = f"this traffic takes 1/{ratio:.2f} of the room"
        if room.pool_ratio is not None:
            detail.insert(0, f"the pool holds {room.pool_ratio:.2f} times the tokens of one endless sequence")
    return Finding(topic="cache room", outcome=outcome, lead=lead, detail=tuple(detail))


def _is_measured(seen: Seen) -> bool:
    """Whether this traffic's share of the pool differs beyond what scrapes of two equal servers do."""
    used = seen.change.room.used_ratio
    again = seen.floor.room.used_ratio if seen.floor else None
    least = USED_MARGIN if again is None else max(USED_MARGIN, 2 * abs(math.log(again)))
    return used is not None and abs(math.log(used)) > least


def _finding(
    topic: Literal["latency", "service", "lengths", "quality"],
    found: str,
    directions: tuple[Outcome, Outcome],
    lead: str,
    detail: list[str],
    effect: Effect | None,
    margin: float,
    floor: bool,
    unit: Literal["relative", "points"] = "relative",
    what: str | None = None,
) -> Finding:
    """A finding whose change went ``higher`` or ``lower``: what that means stands in ``directions``."""
    outcomes: dict[str, Outcome] = {
        "higher": directions[0],
        "lower": directions[1],
        "same": "same",
        "undecided": "undecided",
        # Measured, but with nothing to judge it by.
        "unmeasured": "undecided" if effect is not None else "unmeasured",
    }
    outcome = outcomes[found]
    if what is None and outcome in {"undecided", "unmeasured"}:
        what = advice(effect, floor=floor) or None
    return Finding(
        topic=topic,
        outcome=outcome,
        lead=lead,
        detail=tuple(part for part in detail if part),
        advice=what,
        effect=effect,
        unit=unit,
        margin=margin,
    )
