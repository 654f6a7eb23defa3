"""What a reader sees first of a comparison: what was compared, a line and a sentence a method, how far to trust it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kvload.analysis import words
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.model import ArmComparison, Comparison, Outcome, Topic, Verdict
from kvload.analysis.report.tables import Row, TableData
from kvload.analysis.statistics.estimates import Estimate
from kvload.units import percentile_of

MARKS: dict[Outcome, str] = {
    "better": "▲",
    "worse": "▼",
    "same": "=",
    "differs": "≠",
    "undecided": "?",
    "unmeasured": "",
}
"""A topic's outcome as one sign: better, worse (not higher or lower), the same, other, not decided."""

Advice = Literal["use it", "do not", "a trade", "no difference", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """What to do about a method, and why."""

    arm: str
    advice: Advice
    text: str


MOST_NAMES = 4
"""More methods than this are counted where they would be named in one line."""


def subject(comparison: Comparison) -> str:
    """What is compared with what, in a few words."""
    names = list(comparison.verdicts)
    base = comparison.baseline.name
    if not names:
        return f"The noise of {base}"
    return f"{', '.join(names) if len(names) <= MOST_NAMES else f'{len(names)} methods'} against {base}"


def identity(comparison: Comparison) -> str:
    """Model, engine, device, trace, load, mode, repeats, date: everything one would ask of a figure."""
    base = comparison.baseline
    info = base.info
    engine = " ".join(part for part in (info.engine, info.engine_version) if part) or "unknown engine"
    rates = [run.throughput.intended_rps for run in base.runs if run.throughput.intended_rps]
    rate = f"{words.number(sum(rates) / len(rates))} req/s" if rates else ""
    mode = {"free": "free-running", "forced": "forced lengths"}.get(comparison.mode, comparison.mode)
    started = [run.started_at for run in base.runs if run.started_at is not None]
    when = f"{datetime.fromtimestamp(min(started)).astimezone():%Y-%m-%d %H:%M}" if started else ""
    parts = [
        info.model or "unknown model",
        engine,
        info.device or "",
        f"{comparison.trace.path} ({comparison.trace.used:,} requests)",
        "closed loop" if comparison.closed_loop else rate,
        mode,
        words.plural(comparison.repeats, "repeat"),
        when,
    ]
    return " · ".join(part for part in parts if part)


def summary_table(comparison: Comparison) -> TableData:
    """One line a method: what it carried, how fast, how long its answers, how good, how much its cache holds.

    The baseline's second run has one too: changes are against both.
    """
    arms = comparison.arms
    changes = {change.name: change for change in comparison.comparisons if not change.floor}
    ttft = _unit(arms, "ttft")
    tpot = _unit(arms, "tpot")
    limits = bool(comparison.limits_s)
    scored = _scores(comparison)
    columns = ["method"]
    if limits:
        columns += ["goodput, /s", "within limits, %"]
    columns += [f"TTFT p50, {ttft[0]}", f"TPOT p50, {tpot[0]}"]
    if comparison.mode != "forced":
        columns.append("answer, tokens")
    if scored:
        columns.append("score")
    columns.append("cache, ×")
    base = comparison.baseline.name
    same_server = {base, comparison.floor.name} if comparison.floor else {base}
    rows = []
    for arm in arms:
        change, verdict = changes.get(arm.name), comparison.verdicts.get(arm.name)
        cells = [(arm.name, "")]
        if limits:
            goodput = change.slo.goodput if change and change.slo else None
            share = arm.attainment.estimate if arm.attainment else None
            cells.append((f"{words.number(arm.goodput_rps)}{_mark(verdict, 'service')}", _change(goodput)))
            points = change.slo.difference if change and change.slo else None
            cells.append((words.share(share).removesuffix(" %"), words.points(points.estimate) if points else ""))
        for name, (_, factor) in (("ttft", ttft), ("tpot", tpot)):
            middle = arm.metrics[name].percentiles[50.0].estimate
            found = change.latency[name].relative if change else None
            cells.append(
                (words.number(None if middle is None else middle * factor) + _speed_mark(found), _change(found))
            )
        if comparison.mode != "forced":
            cells.append((f"{words.number(arm.output_tokens.estimate)}{_mark(verdict, 'lengths')}", ""))
        if scored:
            cells.append((f"{words.score(scored.get(arm.name))}{_mark(verdict, 'quality')}", ""))
        cells.append(("1" if arm.name in same_server else _room(change), ""))
        rows.append(Row(cells=[cell for cell, _ in cells], details=[detail for _, detail in cells]))
    return TableData(
        title="At a glance",
        columns=columns,
        rows=rows,
        caption="▲ better, ▼ worse, = same, ≠ other texts, ? cannot be told; second figure: mean change against "
        f"{f'both runs of {base}' if comparison.floor else base}; cache: tokens it holds, times the baseline's",
    )


def _unit(arms: list[ArmSummary], metric: str) -> tuple[str, float]:
    known = sorted(v for arm in arms if (v := arm.metrics[metric].percentiles[50.0].estimate) is not None)
    return words.unit_for(known[0] if known else None)


def _mark(verdict: Verdict | None, topic: Topic) -> str:
    finding = verdict.finding(topic) if verdict else None
    mark = MARKS[finding.outcome] if finding else ""
    return f" {mark}" if mark else ""


def _speed_mark(change: Estimate | None) -> str:
    """A latency's own change, where its interval over runs leaves no doubt; lower is better."""
    if change is None or change.estimate is None or change.low is None or change.high is None:
        return ""
    return " ▲" if change.high < 0 else " ▼" if change.low > 0 else " ?"


def _change(value: Estimate | None) -> str:
    return "" if value is None or value.estimate is None else words.signed_share(value.estimate, 0)


def _room(change: ArmComparison | None) -> str:
    return words.ABSENT if change is None or change.room.pool_ratio is None else f"{change.room.pool_ratio:.2f}"


def _scores(comparison: Comparison) -> dict[str, float]:
    if comparison.answers is None:
        return {}
    found: dict[str, float] = {}
    for name, quality in comparison.answers.arms.items():
        if quality.overall.arm_mean is not None:
            found[name] = quality.overall.arm_mean
        if quality.overall.base_mean is not None:
            found.setdefault(comparison.baseline.name, quality.overall.base_mean)
    return found


def sentences(comparison: Comparison) -> list[Sentence]:
    """For each method what to do about it at this load, and why."""
    return [_sentence(verdict) for verdict in comparison.verdicts.values()]


_WORDS: dict[Advice, str] = {
    "use it": "use it at this load",
    "do not": "do not use it for this",
    "a trade": "a trade",
    "no difference": "no difference that matters at this load",
    "cannot tell": "cannot tell",
}


def _sentence(verdict: Verdict) -> Sentence:
    advice = recommend(verdict)
    text = f"{_WORDS[advice]}. {verdict.headline[:1].upper()}{verdict.headline[1:]}."
    blind = [topic for topic in ("quality", "lengths") if _outcome(verdict, topic) in {None, "unmeasured"}]
    if advice == "use it" and blind:
        text += f" Not measured: {' and '.join(blind)}."
    return Sentence(arm=verdict.arm, advice=advice, text=text)


def recommend(verdict: Verdict) -> Advice:
    """The findings as advice: worse answers weigh more than speed, and what the limits ask for more than latency."""
    if verdict.broken is not None:
        return "do not"
    outcomes = {topic: _outcome(verdict, topic) for topic in ("latency", "service", "lengths", "quality")}
    gain = outcomes["service"] == "better" or (outcomes["latency"] == "better" and outcomes["service"] != "worse")
    loss = outcomes["service"] == "worse" or (outcomes["latency"] == "worse" and outcomes["service"] != "better")
    if outcomes["quality"] == "worse" or (loss and not gain):
        return "do not"
    if gain:
        return "a trade" if loss or outcomes["lengths"] == "worse" else "use it"
    if outcomes["lengths"] == "worse":
        return "do not"
    measured = [outcome for outcome in outcomes.values() if outcome not in {None, "unmeasured"}]
    return "no difference" if measured and all(outcome == "same" for outcome in measured) else "cannot tell"


def _outcome(verdict: Verdict, topic: str) -> Outcome | None:
    return next((finding.outcome for finding in verdict.findings if finding.topic == topic), None)


def next_steps(comparison: Comparison) -> list[str]:
    """What would decide what was left open, each once, with the topics and methods that it would decide."""
    open_topics: dict[str, list[tuple[str, str]]] = {}
    for verdict in comparison.verdicts.values():
        for finding in verdict.findings:
            if finding.advice and finding.outcome == "undecided":
                open_topics.setdefault(finding.advice, []).append((finding.topic, verdict.arm))
    found = []
    for advice, places in open_topics.items():
        topics, arms = (list(dict.fromkeys(part)) for part in zip(*places, strict=True))
        named = words.listed(arms) if len(arms) <= 2 else f"{len(arms)} methods"
        of = "" if len(comparison.verdicts) == 1 else f" of {named}"
        found.append(f"{words.listed(topics)}{of}: {advice}")
    return found


def trust(comparison: Comparison) -> str:
    """How far the figures hold, in one line."""
    parts = []
    if comparison.resolution is not None:
        parts.append(comparison.resolution.sentence())
    elif comparison.floor is None:
        parts.append("the baseline was run once: nothing shows how much equal runs differ")
    lags = [run.trust.lag_p99_s for arm in comparison.arms for run in arm.runs if run.trust.lag_p99_s is not None]
    bound = sum(run.trust.client_bound is True for arm in comparison.arms for run in arm.runs)
    every = sum(len(arm.runs) for arm in comparison.arms)
    if bound:
        parts.append(f"{bound} of {every} runs were client-bound")
    elif lags:
        parts.append(f"client lag p99 {words.seconds(max(lags))}")
    return "; ".join(parts)


def course(comparison: Comparison) -> list[str]:
    """How runs were made side by side: how long they took, and what that may bend; nothing of those in a row."""
    made = comparison.course
    return [] if made is None or not (made.notes or made.bends) else [*made.time, *made.bends]


def limits(comparison: Comparison) -> list[str]:
    """The limits of single requests, and what became of those on percentiles of whole runs."""
    each = ", ".join(f"{words.METRIC_NAMES[name]} ≤ {words.seconds(v)}" for name, v in comparison.limits_s.items())
    found = [f"limits: {each}"] if each else []
    by_limit: dict[tuple[str, float], list[str]] = {}
    for limit in comparison.run_limits:
        worst = "too many were not answered" if limit.worst_s is None else f"{words.seconds(limit.worst_s)} at most"
        told = f"{limit.arm} in {limit.met} of {words.plural(limit.runs, 'run')} ({worst})"
        by_limit.setdefault((limit.name, limit.limit_s), []).append(told)
    for (name, limit_s), each_arm in by_limit.items():
        limit_text = f"{_limit_name(name)} ≤ {words.seconds(limit_s)}"
        found.append(f"limit of whole runs, no part of attainment: {limit_text}: met by {', '.join(each_arm)}")
    return found


def _limit_name(name: str) -> str:
    percent, metric = percentile_of(name) or (100.0, name)
    return f"p{percent:g} of {words.METRIC_NAMES[metric]}"


def left_out(comparison: Comparison) -> list[str]:
    """What is in no latency and no length, and counts as missed: how many requests of each arm, and why."""
    found = []
    for arm in comparison.arms:
        lost = arm.sent - arm.answered
        if lost:
            found.append(
                f"{arm.name}: {lost:,} of {arm.sent:,} requests are no answers and count as missed: {_why(arm)}"
            )
    return found


def _why(arm: ArmSummary, most: int = 3) -> str:
    """The kinds of failure, the most frequent first, each with what the first of it was told."""
    counts: dict[str, int] = {}
    told: dict[str, str] = {}
    for kind in arm.failures:
        name = kind.cause or kind.status
        if kind.status != "unsent":
            counts[name] = counts.get(name, 0) + kind.count
        if kind.first:
            told.setdefault(name, kind.first)
    names = sorted(counts, key=lambda name: -counts[name])
    parts = [f"{counts[name]:,} {name}" + (f' ("{told[name][:160]}")' if name in told else "") for name in names[:most]]
    parts = parts or [f"{number:,} {name}" for name, number in arm.statuses.items() if name not in {"ok", "unsent"}]
    return ", ".join(parts) + (f" and {len(names) - most} other kinds" if len(names) > most else "")
