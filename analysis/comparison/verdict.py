"""What a comparison means, and only where its runs allow it.

A change is found where its p-value, from the noise between runs (:mod:`kvload.analysis.statistics.layout`) and adjusted
for the number of arms, lies below the level's. It is called the same where its interval lies within the margin.
Otherwise there is no verdict, but what would bring one. A topic that nothing speaks for is unmeasured, never the same.
"""

from dataclasses import replace

from kvload.analysis import words
from kvload.analysis.comparison import topics
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.model import Comparison, Finding, Verdict

NO_ANSWERS = 0.05
"""Where more of an arm's requests than this gave no answer, nothing good is said of the others."""


def judge(comparison: Comparison, arm: str) -> Verdict:
    """The verdict on one arm of a comparison whose figures are complete."""
    seen = topics.Seen.of(comparison, arm)
    each = (topics.latency, topics.service, topics.lengths, topics.quality, topics.answers, topics.cache_room)
    findings = [finding for topic in each if (finding := topic(seen)) is not None]
    findings = [_without_praise_for_breaking_off(finding, findings) for finding in findings]
    lost, base_lost = _no_answers(seen.arm), _no_answers(seen.base)
    worst = max((lost, seen.arm), (base_lost, seen.base), key=lambda pair: pair[0])
    if worst[0] > NO_ANSWERS:
        findings = [_without_the_survivors_word(finding, worst[1]) for finding in findings]
    findings = [_without_a_word_on_other_work(finding, seen) for finding in findings]
    broken = _answerless(seen.arm) if lost > base_lost + NO_ANSWERS else None
    headline = _headline(findings)
    return Verdict(arm=arm, headline=f"{broken}; {headline}" if broken else headline, findings=findings, broken=broken)


def _no_answers(arm: ArmSummary) -> float:
    """Share of an arm's requests that ended in errors, aborts, empty answers or impossible counts."""
    return (arm.statuses["failed"] + arm.statuses["refused"]) / arm.sent if arm.sent else 0.0


def _answerless(arm: ArmSummary) -> str:
    lost = arm.statuses["failed"] + arm.statuses["refused"]
    return f"{lost:,} of {arm.sent:,} requests of {arm.name} are no answers"


def _without_the_survivors_word(finding: Finding, arm: ArmSummary) -> Finding:
    """Where many requests gave no answer, those that did do not speak for them: not as fast, short, equal or good."""
    if finding.topic in {"service", "cache room"} or finding.outcome not in {"better", "same", "differs"}:
        return finding
    return replace(
        finding,
        outcome="undecided",
        lead=f"no verdict on {finding.topic}: {_answerless(arm)}",
        detail=(f"of those that were answered on both sides: {finding.lead}", *finding.detail),
        advice="see why requests failed",
    )


def _without_a_word_on_other_work(finding: Finding, seen: topics.Seen) -> Finding:
    """Where one arm's server does not keep to the lengths that were asked for, the two did not do the same work."""
    if finding.topic not in {"latency", "service"} or finding.outcome not in {"better", "worse", "same"}:
        return finding
    odd, other = sorted((seen.arm, seen.base), key=_not_as_asked, reverse=True)
    pairs, unlike = seen.change.population.answered, seen.change.unlike_prompts
    if _not_as_asked(odd) > _not_as_asked(other) + NO_ANSWERS:
        number, how = (odd.too_short, "shorter") if odd.too_short >= odd.too_long else (odd.too_long, "longer")
        why = f"{number:,} of {odd.answered:,} answers of {odd.name} are {how} than was asked for"
        advice = "compare servers that heed min_tokens and max_tokens, or replay with --mode free"
    elif unlike > NO_ANSWERS * pairs and seen.arm.info.model == seen.base.info.model:
        why = f"{unlike:,} of {pairs:,} prompts have another length by the two servers' counts"
        advice = "see whether a server cuts prompts (its context, or truncation), or has another chat template"
    else:
        return finding
    return replace(
        finding,
        outcome="undecided",
        lead=f"no verdict on {finding.topic}: {why}",
        detail=(f"of what was answered: {finding.lead}", *finding.detail),
        advice=advice,
    )


def _not_as_asked(arm: ArmSummary) -> float:
    return (arm.too_short + arm.too_long) / arm.answered if arm.answered else 0.0


def _without_praise_for_breaking_off(finding: Finding, findings: list[Finding]) -> Finding:
    """Shorter answers are better only where quality was seen to stay: an answer that breaks off is short as well."""
    kept = any(other.topic == "quality" and other.outcome in {"same", "better"} for other in findings)
    if finding.topic == "lengths" and finding.outcome == "better" and not kept:
        return replace(finding, outcome="differs")
    return finding


def _headline(findings: list[Finding]) -> str:
    parts = [finding.lead for finding in findings if finding.outcome in {"better", "worse", "differs"}]
    same = [finding.topic for finding in findings if finding.outcome == "same" and finding.topic != "cache room"]
    undecided = [finding.topic for finding in findings if finding.outcome == "undecided"]
    if same:
        parts.append(f"{words.listed(same)} unchanged")
    if undecided:
        parts.append(f"cannot tell: {words.listed(undecided)}")
    return "; ".join(parts) if parts else "nothing could be judged"
