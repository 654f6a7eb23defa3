"""A comparison as a page."""

from html import escape

from kvload.analysis import words
from kvload.analysis.comparison.lengths import LengthChange
from kvload.analysis.comparison.model import ArmComparison, Comparison, Finding, Verdict
from kvload.analysis.comparison.samples import Sample
from kvload.analysis.report import html_page, plots
from kvload.analysis.report.compare_tables import label, notes_of, tables_of, what_was_compared

_TEXT_BUDGET = 600_000
"""Characters of answers on one page, so that it stays under 2 MB."""

_SCATTER_BUDGET = 20_000


def render(comparison: Comparison) -> str:
    """The whole page."""
    styles = plots.styles(comparison)
    names = {arm.name: label(comparison, arm.name) for arm in comparison.arms}
    key = html_page.legend((names[name], style) for name, style in styles.items())
    tables = tables_of(comparison)
    body = [
        html_page.paragraphs(what_was_compared(comparison)),
        _drift(comparison),
        html_page.section("Verdicts", *(_verdict_card(verdict) for verdict in comparison.verdicts.values())),
        html_page.section("Latency", key, html_page.charts(_latency_charts(comparison, styles))),
        html_page.section(
            "Where the change of end-to-end latency comes from",
            html_page.legend(plots.PART_LEGEND),
            html_page.charts([_decomposition(comparison, names)]),
        ),
        html_page.section("Answer lengths", key, _lengths(comparison, styles, names)),
        html_page.section("Over time and over limits", key, html_page.charts(_time_charts(comparison, styles))),
        *(html_page.section(data.title, html_page.table(data)) for data in tables),
        html_page.section("Samples: where quality fell most", _samples(comparison, "quality")),
        html_page.section("Samples: where lengths changed most", _samples(comparison, "length")),
        html_page.section("Notes", html_page.bullets(notes_of(comparison))),
    ]
    return html_page.page(f"kvload comparison: {comparison.trace.path}", body)


def _verdict_card(verdict: Verdict) -> str:
    findings = "".join(
        f'<div class="finding"><span class="dim">{escape(finding.topic)}</span>'
        f'<b class="{finding.outcome}">{escape(finding.outcome)}</b><span>{_said(finding)}</span></div>'
        for finding in verdict.findings
    )
    return f'<div class="card"><h3>{escape(verdict.arm)}</h3><p>{escape(verdict.headline)}</p>{findings}</div>'


def _said(finding: Finding) -> str:
    details = "".join(f'<small class="dim">{escape(sentence)}</small>' for sentence in finding.detail)
    return escape(finding.lead) + details + (f"<small>→ {escape(finding.advice)}</small>" if finding.advice else "")


def _drift(comparison: Comparison) -> str:
    found = comparison.resolution
    return html_page.paragraphs([found.sentence()], "unknown") if found is not None and found.drifts else ""


def _latency_charts(comparison: Comparison, styles: dict[str, str]) -> list[str]:
    found = []
    for name in ("ttft", "tpot", "itl", "e2e"):
        metrics = {styles[arm.name]: arm.metrics[name] for arm in comparison.arms}
        svg = plots.latency_ecdf(name, metrics, comparison.limits_s.get(name))
        what = "gaps" if name == "itl" else "requests"
        found.append(html_page.figure(f"{words.METRIC_NAMES[name]}: share of {what} up to", svg) if svg else "")
    return found


def _decomposition(comparison: Comparison, names: dict[str, str]) -> str:
    svg = plots.decomposition_bars(comparison.comparisons, names)
    note = "mean per request against the baseline; the parts add up to the change named, marked by the dark stroke"
    return html_page.figure("Change of E2E", svg, note) if svg else ""


def _lengths(comparison: Comparison, styles: dict[str, str], names: dict[str, str]) -> str:
    measured = [change for change in comparison.comparisons if change.lengths]
    if not measured:
        return html_page.paragraphs(["refused: lengths were forced, so they say nothing about the model"])
    ordered = [(styles[change.name], change) for change in measured]
    note = "grey: the A/A pair with the band that chance gives it" if comparison.floor else "no floor was measured"
    first = html_page.figure(
        "ECDF of D", plots.difference_ecdf(ordered, comparison.level), f"{note}; D below -200 % at the left end"
    )
    floor = comparison.floor.lengths if comparison.floor else None
    each = [
        _length_charts(change, styles[change.name], names[change.name], floor, len(measured)) for change in measured
    ]
    return html_page.charts([first]) + "".join(each)


def _length_charts(change: ArmComparison, style: str, name: str, floor: LengthChange | None, arms: int) -> str:
    lengths = change.lengths
    if lengths is None:
        return ""
    outline = None if change.floor else floor
    most = max(100, _SCATTER_BUDGET // arms)
    pairs = words.plural(lengths.n, "pair")
    return f"<h3>{escape(name)}</h3>" + html_page.charts(
        [
            html_page.figure(
                "Histogram of D",
                plots.difference_histogram(lengths, style, outline),
                f"{pairs}; first bar: everything below -200 %" + ("; outline: A/A" if outline else ""),
            ),
            html_page.figure(
                "Length under the arm, by length under the baseline",
                plots.length_scatter(lengths, style, most),
                "above the line: the answer grew; large pale dots: cut off at max_tokens",
            ),
            html_page.figure(
                "Share of answers longer than",
                plots.survival(lengths, style),
                "blue: baseline; solid: Kaplan-Meier, cut answers as censored; dashed: naive",
            ),
        ]
    )


def _time_charts(comparison: Comparison, styles: dict[str, str]) -> list[str]:
    arms = [(styles[arm.name], arm) for arm in comparison.arms]
    charts = [
        (
            "Attainment if all limits were tighter or looser",
            plots.attainment_over_scale([(style, arm.attainment_over_scale) for style, arm in arms]),
            "",
        ),
        (
            "Requests in flight",
            plots.lines_over_time("in flight", [(style, arm.timeline.in_flight) for style, arm in arms]),
            "first repeat of each arm, as the client saw it",
        ),
        (
            "Cache usage",
            plots.lines_over_time("cache usage", [(style, arm.timeline.cache_usage) for style, arm in arms], "share"),
            "first repeat of each arm, as the server reports it",
        ),
        (
            "Requests waiting",
            plots.lines_over_time("waiting", [(style, arm.timeline.waiting) for style, arm in arms]),
            "first repeat of each arm, as the server reports it",
        ),
    ]
    return [html_page.figure(title, svg, note) for title, svg, note in charts if svg]


def _samples(comparison: Comparison, kind: str) -> str:
    lengths = {change.name: change.worst for change in comparison.comparisons if not change.floor}
    arms = comparison.answers.arms if comparison.answers else {}
    quality = {name: arms[name].worst for name in lengths if name in arms}
    everything = sum(len(samples) for found in (lengths, quality) for samples in found.values())
    most = min(4000, _TEXT_BUDGET // (3 * max(everything, 1)))
    chosen = quality if kind == "quality" else lengths
    return "".join(
        _sample(name, comparison.baseline.name, sample, most) for name, samples in chosen.items() for sample in samples
    )


def _sample(arm: str, base: str, sample: Sample, most: int) -> str:
    head = (
        f"{arm} · {sample.request_id} (repeat {sample.repeat}){f' · {sample.task}' if sample.task else ''}: "
        f"{sample.base_tokens:,} → {sample.other_tokens:,} tokens, D {words.signed_share(sample.difference, 0)}"
    )
    if sample.base_score is not None:
        head += f", score {words.number(sample.base_score)} → {words.number(sample.other_score)}"
    expected = f"<p>expected:</p><pre>{_cut(sample.expected, most)}</pre>" if sample.expected is not None else ""
    answers = "".join(
        f"<div><p>{escape(name)} ({escape(finish or 'no finish reason')})</p><pre>{_cut(text, most)}</pre></div>"
        for name, finish, text in (
            (base, sample.base_finish, sample.base_text),
            (arm, sample.other_finish, sample.other_text),
        )
    )
    return f'<details><summary>{escape(head)}</summary>{expected}<div class="answers">{answers}</div></details>'


def _cut(text: str | None, most: int) -> str:
    if text is None:
        return "(the text was not kept)"
    kept = text[:most]
    while len(shown := escape(kept)) > most:
        # What HTML needs to write with several characters counts as such: the page's size is the limit.
        kept = kept[: len(kept) * most // len(shown)]
    rest = len(text) - len(kept)
    return shown if rest <= 0 else f"{shown} … ({rest:,} more characters)"
