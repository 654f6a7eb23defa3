"""What a comparison means, and only where its runs allow it.

A change is found where its p-value, from the noise between runs (:mod:`kvload.analysis.statistics.layout`) and adjusted
for the number of arms, lies below the level's. It is called the same where its interval lies within the margin.
Otherwise there is no verdict, but what would bring one. A topic that nothing speaks for is unmeasured, never the same.
"""

from dataclasses import replace

from kvload.analysis.comparison import topics
from kvload.analysis.comparison.model import Comparison, Finding, Verdict


def judge(comparison: Comparison, arm: str) -> Verdict:
    """The verdict on one arm of a comparison whose figures are complete."""
    seen = topics.Seen.of(comparison, arm)
    each = (topics.latency, topics.service, topics.lengths, topics.quality, topics.answers, topics.cache_room)
    findings = [finding for topic in each if (finding := topic(seen)) is not None]
    findings = [_without_praise_for_breaking_off(finding, findings) for finding in findings]
    return Verdict(arm=arm, headline=_headline(findings), findings=findings)


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
        parts.append(f"{' and '.join(same)} unchanged")
    if undecided:
        parts.append(f"cannot tell: {' and '.join(undecided)}")
    return "; ".join(parts) if parts else "nothing could be judged"
