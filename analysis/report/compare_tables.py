"""What reports of comparisons show, as plain rows of text."""

from kvload.analysis import words
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.model import ArmComparison, Comparison
from kvload.analysis.quality.negatives import NegativeCount
from kvload.analysis.report import first_screen
from kvload.analysis.report.tables import Row, TableData


def what_was_compared(comparison: Comparison) -> list[str]:
    """Trace, mode, repeats, limits and floor in a few lines."""
    trace = comparison.trace
    mode = {"free": "free-running", "forced": "forced-length"}[comparison.mode]
    floor = comparison.floor
    lines = [
        f"{trace.path} ({trace.format}, {trace.rows_text}), {mode}, "
        f"{words.plural(comparison.repeats, 'repeat')} of each arm",
        f"baseline: {comparison.baseline.name}"
        + (f"; noise floor: {floor.name}" if floor else "; no noise floor was measured"),
    ]
    return [*lines, *first_screen.limits(comparison)]


def course_of(comparison: Comparison) -> list[str]:
    """How the runs were made: how long they took, what that bends, where they were."""
    course = comparison.course
    return [] if course is None else [*course.time, *course.bends, *course.notes]


def notes_of(comparison: Comparison) -> list[str]:
    """Notes of the whole and of each arm."""
    quality = comparison.answers.quality.notes if comparison.answers else []
    said = [*comparison.notes, *(note for note in quality if not note.startswith("no noise floor"))]
    return [*said, *(f"{c.name}: {note}" for c in comparison.comparisons for note in c.notes)]


def tables_of(comparison: Comparison) -> list[TableData]:
    """All tables in the order they are read."""
    found = [arms_table(comparison), latency_table(comparison), decomposition_table(comparison)]
    if any(change.lengths for change in comparison.comparisons):
        found.append(length_table(comparison))
        found.append(censored_table(comparison))
    if comparison.limits_s:
        found.append(slo_table(comparison))
    if quality := quality_table(comparison):
        found.append(quality)
    return found


def quality_table(comparison: Comparison) -> TableData | None:
    """Mean scores, and negative samples beside their mirror and the A/A pair's."""
    answers = comparison.answers
    if answers is None or not any(found.overall.n for found in answers.arms.values()):
        return None
    thetas = sorted({count.theta for count in answers.quality.negatives})
    rows = []
    for name, found in answers.arms.items():
        counts = {count.theta: count for count in found.negatives}
        for change in (found.overall, *found.tasks):
            whole = change.task is None
            rows.append(
                Row(
                    cells=(
                        label(comparison, name) if whole else f"  {change.task}",
                        f"{change.n:,}",
                        words.score(change.base_mean),
                        words.score(change.arm_mean),
                        words.points(change.difference.estimate),
                        *(_negative(counts.get(theta)) if whole else "" for theta in thetas),
                    ),
                    details=(
                        *("", "", "", ""),
                        words.change_range(change.difference).replace("%", "points"),
                        *("" for _ in thetas),
                    ),
                )
            )
    scorers = ", ".join(sorted({found.overall.scorer for found in answers.arms.values()}))
    return TableData(
        title="Quality of the answers, request by request",
        columns=("arm, task", "n", "base", "arm", "change", *(f"negative at {theta:.0%}" for theta in thetas)),
        rows=rows,
        caption=f"scorer: {scorers}; negative: out of the samples whose baseline reaches its {answers.quality.gate};"
        " in brackets mirror and A/A",
    )


def _negative(count: NegativeCount | None) -> str:
    if count is None:
        return words.ABSENT
    again = words.ABSENT if count.floor_negative is None else f"{count.floor_negative:,}"
    return f"{count.negative:,} of {count.eligible:,} ({count.mirror:,}, {again})"


def label(comparison: Comparison, name: str) -> str:
    """An arm's name, with its part in the comparison."""
    floor, perturbed = comparison.floor, comparison.perturbed
    if floor and floor.name == name:
        return f"{name} · A/A"
    return f"{name} · another dtype" if perturbed and perturbed.name == name else name


def arms_table(comparison: Comparison) -> TableData:
    """Every arm by itself."""
    return TableData(
        title="Every arm by itself",
        columns=("arm", "sent", "done", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p50", "p99", "tokens", "tokens/s"),
        rows=[
            Row(
                cells=(
                    label(comparison, arm.name),
                    f"{arm.sent:,}",
                    f"{arm.answered:,}",
                    *(_percentile(arm, name, p) for name in ("ttft", "tpot", "e2e") for p in (50.0, 99.0)),
                    words.number(arm.output_tokens.estimate),
                    words.number(arm.output_tokens_per_s),
                ),
                details=(
                    *("", "", ""),
                    *(_unbounded(arm, name, p) for name in ("ttft", "tpot", "e2e") for p in (50.0, 99.0)),
                    *("", ""),
                ),
            )
            for arm in comparison.arms
        ],
        caption="tokens: mean length of an answer; tokens/s: output of all answered requests",
    )


def _percentile(arm: ArmSummary, metric: str, percent: float) -> str:
    found = arm.metrics[metric]
    return words.seconds(found.max_s if _unbounded(arm, metric, percent) else found.percentiles[percent].estimate)


def _unbounded(arm: ArmSummary, metric: str, percent: float) -> str:
    """What stands for a percentile that so few requests do not bound from above."""
    value = arm.metrics[metric].percentiles[percent]
    return f"max of {value.n:,}" if value.estimate is not None and value.high is None else ""


def latency_table(comparison: Comparison) -> TableData:
    """Changes of mean latencies, with and beyond the noise floor."""
    rows = []
    for change in comparison.comparisons:
        values = [change.latency[name].relative for name in ("ttft", "tpot", "e2e")]
        effect = change.effects.get("latency")
        rows.append(
            Row(
                cells=(
                    label(comparison, change.name),
                    f"{change.latency['e2e'].n:,}",
                    *(words.signed_share(value.estimate) for value in values),
                    words.signed_share(effect.change.estimate) if effect else words.ABSENT,
                    words.p_text(effect.adjusted_p if effect else None).removeprefix("= "),
                ),
                details=(
                    *("", ""),
                    *map(words.change_range, values),
                    words.change_range(effect.change if effect else None),
                    "",
                ),
            )
        )
    return TableData(
        title=f"Change of mean latency against {comparison.baseline.name}, request by request",
        columns=("arm", "pairs", "TTFT", "TPOT", "E2E", "at equal lengths", "adjusted p"),
        rows=rows,
        caption=f"below each figure its {comparison.level * 100:g} % interval from the noise between runs, where that"
        " is known; at equal lengths: TTFT and time per token for the baseline's answers, which is what is judged",
    )


def decomposition_table(comparison: Comparison) -> TableData:
    """The four parts of the change of E2E."""
    told = all("queueing" in change.decomposition.parts for change in comparison.comparisons)
    shown = ("queueing", "prefill", "speed", "length") if told else ("prefill", "speed", "length")
    rows = []
    for change in comparison.comparisons:
        parts = change.decomposition.parts
        rows.append(
            Row(
                cells=(
                    label(comparison, change.name),
                    words.signed_seconds(change.decomposition.total.estimate),
                    *(words.signed_seconds(parts[name].estimate) if name in parts else words.ABSENT for name in shown),
                    _eaten(change),
                )
            )
        )
    names = shown if told else (words.WAIT_AND_PREFILL, "speed", "length")
    return TableData(
        title="Where the change of E2E comes from: mean per request, the parts add up",
        columns=("arm", "E2E", *names, "of speed-up eaten"),
        rows=rows,
        caption=None if told else "the server tells no queueing times of single requests",
    )


def _eaten(change: ArmComparison) -> str:
    """How much of a speed-up longer answers take away, where there is a speed-up beyond the noise between runs."""
    value, speed = change.decomposition.eaten, change.effects.get("latency")
    if value is None or value.estimate is None or speed is None or not speed.found or (speed.change.estimate or 0) > 0:
        return words.ABSENT
    return f"{words.share(value.estimate, 0)} ({words.share(value.low, 0)} to {words.share(value.high, 0)})"


def length_table(comparison: Comparison) -> TableData:
    """Changes of answer lengths."""
    rows = []
    for change in comparison.comparisons:
        lengths = change.lengths
        if lengths is None:
            continue
        effect = change.effects.get("lengths")
        shares = (lengths.grown, lengths.shrunk)
        rows.append(
            Row(
                cells=(
                    label(comparison, change.name),
                    f"{lengths.n:,}",
                    words.ratio(lengths.ratio_mean.estimate),
                    words.signed_share(effect.change.estimate) if effect else words.ABSENT,
                    words.signed_share(lengths.difference_mean.estimate),
                    words.signed_share(lengths.difference_median.estimate),
                    *(words.share(value.estimate) for value in shares),
                    words.p_text(lengths.test.p_value).removeprefix("= "),
                ),
                details=(
                    "",
                    "",
                    f"{words.ratio(lengths.ratio_mean.low)} to {words.ratio(lengths.ratio_mean.high)}",
                    words.change_range(effect.change if effect else None),
                    words.change_range(lengths.difference_mean),
                    words.change_range(lengths.difference_median),
                    *map(words.share_range, shares),
                    "",
                ),
            )
        )
    return TableData(
        title="Answer lengths, request by request",
        columns=(
            *("arm", "pairs", "mean ratio", "geometric mean", "mean D", "median D"),
            *("D ≤ -50 %", "D ≥ +50 %", "Wilcoxon p"),
        ),
        rows=rows,
        caption="D = (base - arm) / base tokens: negative, the answer grew; ratio = arm / base. The geometric mean of"
        " the ratios is what is judged; the mean ratio of two equal runs lies above 1",
    )


def censored_table(comparison: Comparison) -> TableData:
    """Answers cut off at ``max_tokens``, and median lengths with and without regard to them."""
    rows = []
    for change in comparison.comparisons:
        lengths = change.lengths
        if lengths is None:
            continue
        naive, censored = (lengths.naive_base, lengths.naive_other), (lengths.curve_base, lengths.curve_other)
        rows.append(
            Row(
                cells=(
                    label(comparison, change.name),
                    words.share(lengths.cap_base.estimate),
                    words.share(lengths.cap_other.estimate),
                    *(" → ".join(_median(curve.median) for curve in curves) for curves in (naive, censored)),
                )
            )
        )
    return TableData(
        title="Answers cut off at max_tokens (of unknown length)",
        columns=("arm", "cut, base", "cut, arm", "median tokens, naive", "median tokens, Kaplan-Meier"),
        rows=rows,
    )


def _median(value: float | None) -> str:
    return "beyond the cap" if value is None else words.number(value)


def slo_table(comparison: Comparison) -> TableData:
    """Attainment of every arm and its change."""
    changes: dict[str, ArmComparison] = {change.name: change for change in comparison.comparisons}
    rows = []
    for arm in comparison.arms:
        share = arm.attainment
        met = changes[arm.name].slo if arm.name in changes else None
        rows.append(
            Row(
                cells=(
                    label(comparison, arm.name),
                    words.share(share.estimate if share else None),
                    words.points(met.difference.estimate) if met else "",
                    f"{met.lost:,}" if met else "",
                    f"{met.won:,}" if met else "",
                    words.p_text(met.test.p_value).removeprefix("= ") if met else "",
                    f"{words.number(arm.goodput_rps)}/s",
                    words.signed_share(met.goodput.estimate) if met else "",
                ),
                details=(
                    "",
                    words.share_range(share),
                    words.change_range(met.difference).replace("%", "points") if met else "",
                    *("", "", "", ""),
                    words.change_range(met.goodput) if met else "",
                ),
            )
        )
    return TableData(
        title="Service levels, request by request",
        columns=("arm", "attainment", "change", "lost", "won", "McNemar p", "goodput", "change"),
        rows=rows,
        caption="lost: requests that met all limits under the baseline only; won: under the arm only",
    )
