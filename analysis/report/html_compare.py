"""A comparison as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from kvload.analysis import words
from kvload.analysis.comparison.lengths import LengthChange
from kvload.analysis.comparison.model import ArmComparison, Comparison
from kvload.analysis.comparison.samples import Sample
from kvload.analysis.report import course_plot, first_screen, forest, page, plots, tables
from kvload.analysis.report.compare_tables import course_of, label, notes_of, tables_of, what_was_compared
from kvload.analysis.report.page import Figure, figures
from kvload.analysis.report.tables import TableData

_TEXT_BUDGET = 600_000
"""Characters of answers on one page, so that it stays under 2 MB."""

_SCATTER_BUDGET = 12_000
"""Dots of all scatters of one kind."""


@dataclass(frozen=True)
class _Sample:
    head: str
    expected: str | None
    answers: list[tuple[str, str]]


@dataclass(frozen=True)
class _Lengths:
    measured: bool
    unchanged: list[str]
    curve: list[Figure]
    arms: list[tuple[str, list[Figure]]]


def render(comparison: Comparison) -> str:
    """The whole page."""
    styles = plots.styles(comparison)
    names = {arm.name: label(comparison, arm.name) for arm in comparison.arms}
    resolution = comparison.resolution
    return page.render(
        "comparison.html.j2",
        title=first_screen.subject(comparison),
        identity=first_screen.identity(comparison),
        left_out=first_screen.left_out(comparison),
        limits=first_screen.limits(comparison),
        targets=_targets(comparison),
        drift=resolution.sentence() if resolution is not None and resolution.drifts else "",
        sentences=first_screen.sentences(comparison),
        summary=first_screen.summary_table(comparison),
        legend=[(names[name], style) for name, style in styles.items()],
        forest=forest.changes(comparison, styles),
        trust=first_screen.trust(comparison),
        runs=first_screen.course(comparison),
        course=course_of(comparison),
        timeline=course_plot.timeline(comparison.course, styles),
        steps=first_screen.next_steps(comparison),
        verdicts=list(comparison.verdicts.values()),
        latency=_latency(comparison, styles, names),
        part_legend=plots.part_legend(comparison.comparisons),
        decomposition=_decomposition(comparison, names),
        over_time=_over_time(comparison, styles, names),
        by_prompt=_by_prompt(comparison, styles, names),
        tasks=forest.task_scores(comparison, styles),
        lengths=_lengths(comparison, styles, names),
        tables=tables_of(comparison),
        failures=_failures(comparison),
        worst_quality=_samples(comparison, "quality"),
        worst_lengths=_samples(comparison, "length"),
        what=what_was_compared(comparison),
        notes=notes_of(comparison),
    )


def _targets(comparison: Comparison) -> dict[str, str]:
    """Where the page shows what a verdict on a topic rests on, by topic; none for what it does not show."""
    charts = {"latency": "Latency", "lengths": "Answer lengths"}
    titles = {table.title for table in tables_of(comparison)}
    quality = next((title for title in titles if title.startswith("Quality")), None)
    service = next((title for title in titles if title.startswith("Service levels")), None)
    scored = "Scores by task" if forest.task_scores(comparison, plots.styles(comparison)) else quality
    charts |= {"service": service or "", "quality": scored or "", "answers": quality or ""}
    charts["cache room"] = next((title for title in titles if title.startswith("Every arm")), "")
    return {topic: page.anchor(title) for topic, title in charts.items() if title}


def _latency(comparison: Comparison, styles: Mapping[str, str], names: Mapping[str, str]) -> list[Figure]:
    told = {style: names[name] for name, style in styles.items()}
    found = []
    for name in ("ttft", "tpot", "itl", "e2e"):
        metrics = {styles[arm.name]: arm.metrics[name] for arm in comparison.arms}
        what = "gaps" if name == "itl" else "requests"
        title = f"{words.METRIC_NAMES[name]}: share of {what} within"
        found.append((title, plots.latency_ecdf(name, metrics, comparison.limits_s.get(name), told), ""))
    return figures(found)


def _decomposition(comparison: Comparison, names: Mapping[str, str]) -> list[Figure]:
    note = "mean per request against the baseline; the parts add up to the change named, marked by the dark stroke"
    return figures([("Change of E2E", plots.decomposition_bars(comparison.comparisons, names), note)])


def _over_time(comparison: Comparison, styles: Mapping[str, str], names: Mapping[str, str]) -> list[Figure]:
    arms = [(styles[arm.name], arm) for arm in comparison.arms]
    told = {style: names[name] for name, style in styles.items()}
    client, server = "first repeat of each arm, as the client saw it", "first repeat of each arm, as the server says"
    limits = comparison.limits_s
    return figures(
        [
            (
                "TTFT p50, by when a request was sent",
                plots.lines_over_time(
                    "TTFT over time",
                    [(style, arm.series.ttft_p50_s) for style, arm in arms],
                    "seconds",
                    names=told,
                    limit=limits.get("ttft"),
                ),
                client,
            ),
            (
                "TPOT p50, by when a request was sent",
                plots.lines_over_time(
                    "TPOT over time",
                    [(style, arm.series.tpot_p50_s) for style, arm in arms],
                    "seconds",
                    names=told,
                    limit=limits.get("tpot"),
                ),
                client,
            ),
            (
                "Output tokens a second",
                plots.lines_over_time(
                    "output", [(style, arm.series.output_tokens_per_s) for style, arm in arms], names=told
                ),
                client,
            ),
            (
                "Requests in flight",
                plots.lines_over_time(
                    "in flight", [(style, arm.timeline.in_flight) for style, arm in arms], names=told
                ),
                client,
            ),
            (
                "Requests waiting",
                plots.lines_over_time("waiting", [(style, arm.timeline.waiting) for style, arm in arms], names=told),
                server,
            ),
            (
                "Cache usage",
                plots.lines_over_time(
                    "cache usage", [(style, arm.timeline.cache_usage) for style, arm in arms], "share", names=told
                ),
                server,
            ),
            (
                "Attainment if all limits were tighter or looser",
                plots.attainment_over_scale([(style, arm.attainment_over_scale) for style, arm in arms]),
                "",
            ),
        ]
    )


def _by_prompt(comparison: Comparison, styles: Mapping[str, str], names: Mapping[str, str]) -> list[Figure]:
    arms = [arm for arm in comparison.arms if not arm.floor]
    most = max(100, _SCATTER_BUDGET // max(len(arms), 1))
    limit = comparison.limits_s.get("ttft")
    return figures(
        (
            names[arm.name],
            plots.prompt_scatter(_thinned(arm.series.ttft_by_prompt, most), styles[arm.name], limit),
            "TTFT, a dot a request of the first repeat",
        )
        for arm in arms
    )


def _thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    return points[:: -(-len(points) // most) or 1]


def _lengths(comparison: Comparison, styles: Mapping[str, str], names: Mapping[str, str]) -> _Lengths:
    measured = [change for change in comparison.comparisons if change.lengths]
    changed = [change for change in measured if change.lengths and _moved(change.lengths)]
    unchanged = [
        f"{names[change.name]}: every answer has the baseline's length" for change in measured if change not in changed
    ]
    note = "grey: the A/A pair with the band that chance gives it" if comparison.floor else "no floor was measured"
    curve = figures(
        [
            (
                "Share of answers whose length changed by at most D",
                plots.difference_ecdf([(styles[c.name], c) for c in measured], comparison.level) if changed else "",
                f"{note}; D below -200 % at the left end",
            )
        ]
    )
    floor = comparison.floor.lengths if comparison.floor else None
    arms = [
        (names[change.name], _length_charts(change, styles[change.name], floor, len(changed))) for change in changed
    ]
    return _Lengths(bool(measured), unchanged, curve, arms)


def _moved(lengths: LengthChange) -> bool:
    """Whether any answer's length differs from the baseline's, or any was cut off."""
    return any(base != other or cut for base, other, cut in lengths.scatter)


def _length_charts(change: ArmComparison, style: str, floor: LengthChange | None, arms: int) -> list[Figure]:
    lengths = change.lengths
    if lengths is None:
        return []
    outline = None if change.floor else floor
    most = max(100, _SCATTER_BUDGET // arms)
    pairs = words.plural(lengths.n, "pair")
    return figures(
        [
            (
                "How many answers changed by how much",
                plots.difference_histogram(lengths, style, outline),
                f"{pairs}; first bar: everything below -200 %" + ("; outline: A/A" if outline else ""),
            ),
            (
                "Length under the arm, by length under the baseline",
                plots.length_scatter(lengths, style, most),
                "above the line: the answer grew; large pale dots: cut off at max_tokens",
            ),
            (
                "Share of answers longer than",
                plots.survival(lengths, style),
                "blue: baseline; solid: cut-off answers counted as at least this long; dashed: as if they had ended",
            ),
        ]
    )


def _failures(comparison: Comparison) -> TableData:
    rows = [row for arm in comparison.arms for row in tables.failure_table(arm.failures, arm.name).rows]
    empty = tables.failure_table([])
    return TableData(title=empty.title, columns=empty.columns, rows=rows)


def _samples(comparison: Comparison, kind: str) -> list[_Sample]:
    lengths = {change.name: change.worst for change in comparison.comparisons if not change.floor}
    arms = comparison.answers.arms if comparison.answers else {}
    quality = {name: arms[name].worst for name in lengths if name in arms}
    everything = sum(len(samples) for found in (lengths, quality) for samples in found.values())
    most = min(4000, _TEXT_BUDGET // (3 * max(everything, 1)))
    chosen = quality if kind == "quality" else lengths
    return [
        _sample(name, comparison.baseline.name, sample, most) for name, samples in chosen.items() for sample in samples
    ]


def _sample(arm: str, base: str, sample: Sample, most: int) -> _Sample:
    head = (
        f"{arm} · {sample.request_id} (repeat {sample.repeat}){f' · {sample.task}' if sample.task else ''}: "
        f"{sample.base_tokens:,} → {sample.other_tokens:,} tokens, D {words.signed_share(sample.difference, 0)}"
    )
    if sample.base_score is not None:
        head += f", score {words.number(sample.base_score)} → {words.number(sample.other_score)}"
    return _Sample(
        head=head,
        expected=None if sample.expected is None else _cut(sample.expected, most),
        answers=[
            (f"{name} ({finish or 'no finish reason'})", _cut(text, most))
            for name, finish, text in (
                (base, sample.base_finish, sample.base_text),
                (arm, sample.other_finish, sample.other_text),
            )
        ],
    )


def _cut(text: str | None, most: int) -> str:
    if text is None:
        return "(the text was not kept)"
    kept = text[:most]
    while (length := len(escape(kept))) > most:
        # What HTML needs to write with several characters counts as such: the page's size is the limit.
        kept = kept[: len(kept) * most // length]
    rest = len(text) - len(kept)
    return kept if rest <= 0 else f"{kept} … ({rest:,} more characters)"
