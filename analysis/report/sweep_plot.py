"""The pictures of a sweep: goodput and attainment over load, and latency against throughput."""

import textwrap
from collections.abc import Callable, Sequence
from html import escape

from kvload.analysis import words
from kvload.analysis.report.page import style as style_sheet
from kvload.analysis.report.svg import SERIES, Axis, Chart, axis_for
from kvload.analysis.report.sweep_tables import capacity_text, headline, load_unit
from kvload.analysis.sweep.model import Curve, Level, Sweep

WIDE = 760
_MARGIN = 16


def styles(sweep: Sweep) -> dict[str, str]:
    """A style class for every arm; dashes where colours repeat."""
    return {
        curve.arm: f"s{place % SERIES}" + (" again" if place >= SERIES else "")
        for place, curve in enumerate(sweep.curves)
    }


def goodput(sweep: Sweep, *, width: int = WIDE) -> Chart:
    """Requests a second that meet the limits, over the load; the knee of each arm is the ringed mark."""
    levels = [level for curve in sweep.curves for level in curve.levels]
    highs = [high for level in levels if (high := level.goodput_rps.high) is not None]
    most = max(highs, default=1.0) * 1.08
    chart = Chart(
        "goodput over load",
        _load_axis(sweep),
        Axis(title="goodput, requests/s", low=0.0, high=most, text=words.number),
        width=width,
        height=300,
    )
    if sweep.axis == "rate":
        reach = min(chart.x.high, most)
        chart.line([(0.0, 0.0), (reach, reach)], "thin floor")
    for curve, style in _drawn(sweep):
        known = [level for level in curve.levels if level.goodput_rps.estimate is not None]
        chart.band(
            [(level.level, level.goodput_rps.low or 0.0) for level in known],
            [(level.level, level.goodput_rps.high or 0.0) for level in known],
            style,
        )
        chart.line([(level.level, level.goodput_rps.estimate or 0.0) for level in known], style)
        for level in known:
            at = (level.level, level.goodput_rps.estimate or 0.0)
            chart.marker(*at, f"mark {style}", _hint(sweep, curve, level))
            if level.level == curve.met_at:
                chart.marker(*at, f"ring {style}", _hint(sweep, curve, level), radius=7)
    return chart


def attainment(sweep: Sweep, *, width: int = WIDE) -> Chart:
    """The share of requests within the limits, over the load; the interval in which each arm crosses the target."""
    chart = Chart(
        "attainment over load",
        _load_axis(sweep),
        Axis(title="within the limits", low=0.0, high=1.0, text=lambda value: f"{value * 100:.0f} %"),
        width=width,
        height=220,
    )
    chart.rule(y=sweep.target, text=f"target {words.share(sweep.target, 0)}")
    drawn = _drawn(sweep)
    for place, (curve, style) in enumerate(drawn):
        # intervals of several arms beside each other, not on top
        height = sweep.target + (place - (len(drawn) - 1) / 2) * 0.045
        known = [level for level in curve.levels if level.share.estimate is not None]
        chart.band(
            [(level.level, level.share.low or 0.0) for level in known],
            [(level.level, 1.0 if level.share.high is None else level.share.high) for level in known],
            style,
        )
        chart.line([(level.level, level.share.estimate or 0.0) for level in known], style)
        for level in known:
            chart.marker(level.level, level.share.estimate or 0.0, f"mark {style}", _hint(sweep, curve, level))
        found = curve.capacity
        if found.estimate is not None:
            low, high = found.low or chart.x.low, found.high or chart.x.high
            chart.line([(low, height), (high, height)], f"span {style}")
            hint = f"{curve.arm} carries {capacity_text(sweep, curve)}"
            chart.marker(found.estimate, height, f"ring {style}", hint, radius=5)
    return chart


def latency_throughput(sweep: Sweep, metric: str, percent: float) -> Chart | None:
    """A latency's percentile against the answered requests a second, along each arm's levels."""

    def value(level: Level) -> float | None:
        return {"ttft": level.ttft_s, "tpot": level.tpot_s, "e2e": level.e2e_s}[metric].get(percent)

    return _path_chart(
        sweep,
        f"{words.METRIC_NAMES[metric]} p{percent:g} against output",
        "output tokens/s",
        lambda level: level.output_tokens_per_s,
        "",
        value,
        log=True,
        limit=sweep.limits_s.get(metric),
        label=words.seconds,
    )


def pareto(sweep: Sweep) -> Chart | None:
    """Tokens a second of one answer against those of all together: up and to the right is better."""

    def speed(level: Level) -> float | None:
        tpot = level.tpot_s.get(50.0)
        return 1 / tpot if tpot else None

    return _path_chart(
        sweep,
        "speed of one answer against output of all",
        "output tokens/s, all requests",
        lambda level: level.output_tokens_per_s,
        "tokens/s of one answer",
        speed,
        log=False,
        limit=1 / sweep.limits_s["tpot"] if "tpot" in sweep.limits_s else None,
        label=words.number,
    )


def picture(sweep: Sweep) -> str:
    """Goodput and attainment as one SVG file that stands alone, light or dark."""
    upper, lower = goodput(sweep), attainment(sweep)
    lines = headline(sweep)
    title = textwrap.wrap(lines[0] if lines else "goodput and attainment over load", 88)
    keys_from = 32 + 20 * len(title)
    top = keys_from + 17 * len(sweep.curves) - 4
    height = top + upper.height + lower.height + _MARGIN
    keys = []
    for place, (curve, style) in enumerate(_drawn(sweep)):
        y = keys_from + 17 * place
        keys.append(f'<rect class="bar {style}" x="{_MARGIN}" y="{y - 9}" width="14" height="9"/>')
        keys.append(f'<text x="{_MARGIN + 22}" y="{y}">{escape(f"{curve.arm}: {capacity_text(sweep, curve)}")}</text>')
    label = escape(" ".join(title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" width="{WIDE}" height="{height}" '
        f'role="img" aria-label="{label}" font-family="system-ui, sans-serif" font-size="12">'
        f"<style>{style_sheet()}</style>"
        f'<rect class="paper" width="{WIDE}" height="{height}"/>'
        f"{''.join(_title_line(number, line) for number, line in enumerate(title))}"
        f"{''.join(keys)}"
        f'<g transform="translate(0 {top})">{upper.drawing()}</g>'
        f'<g transform="translate(0 {top + upper.height})">{lower.drawing()}</g></svg>\n'
    )


def _title_line(number: int, line: str) -> str:
    y = 26 + 20 * number
    return f'<text class="title" x="{_MARGIN}" y="{y}" font-size="15" font-weight="600">{escape(line)}</text>'


def _drawn(sweep: Sweep) -> list[tuple[Curve, str]]:
    found = styles(sweep)
    return [(curve, found[curve.arm]) for curve in sweep.curves if curve.levels]


def _load_axis(sweep: Sweep) -> Axis:
    loads = [level.level for curve in sweep.curves for level in curve.levels]
    title = "requests sent, /s" if sweep.axis == "rate" else "requests in flight"
    return Axis(title=title, low=0.0, high=max(loads, default=1.0) * 1.04, text=words.number)


def _path_chart(
    sweep: Sweep,
    title: str,
    x_title: str,
    x_of: Callable[[Level], float | None],
    y_title: str,
    y_of: Callable[[Level], float | None],
    *,
    log: bool,
    limit: float | None,
    label: Callable[[float], str],
) -> Chart | None:
    lines: list[tuple[Curve, str, list[tuple[float, float, Level]]]] = []
    for curve, style in _drawn(sweep):
        points = [
            (x, y, level)
            for level in curve.levels
            if (x := x_of(level)) is not None and (y := y_of(level)) is not None and (y > 0 or not log)
        ]
        lines.append((curve, style, points))
    if not any(points for _, _, points in lines):
        return None
    every = [point for _, _, points in lines for point in points]
    values = [y for _, y, _ in every] + ([limit] if limit else [])
    chart = Chart(
        title,
        axis_for([x for x, _, _ in every], x_title, text=words.number, zero=True),
        axis_for(values, y_title, log=log, text=label, zero=not log),
    )
    if limit:
        chart.rule(y=limit, text="limit")
    for curve, style, points in lines:
        chart.line([(x, y) for x, y, _ in points], style)
        for x, y, level in points:
            chart.marker(x, y, f"mark {style}", _hint(sweep, curve, level))
    return chart


def _hint(sweep: Sweep, curve: Curve, level: Level) -> str:
    share, good = level.share, level.goodput_rps
    parts = [
        f"{curve.arm} at {words.number(level.level)}{load_unit(sweep)}",
        f"{words.share(share.estimate)} within the limits ({words.between(share, words.share)})",
        f"goodput {words.number(good.estimate)}/s",
        f"TTFT p50 {words.seconds(level.ttft_s.get(50.0))}, p99 {words.seconds(level.ttft_s.get(99.0))}",
        f"TPOT p50 {words.seconds(level.tpot_s.get(50.0))}, p99 {words.seconds(level.tpot_s.get(99.0))}",
    ]
    return "\n".join(parts)


def charts(sweep: Sweep) -> Sequence[tuple[str, Chart]]:
    """Titles and charts of the page, below the picture."""
    found: list[tuple[str, Chart | None]] = [
        ("TTFT p50 against output", latency_throughput(sweep, "ttft", 50.0)),
        ("TTFT p99 against output", latency_throughput(sweep, "ttft", 99.0)),
        ("TPOT p50 against output", latency_throughput(sweep, "tpot", 50.0)),
        ("Speed of one answer against output of all (Pareto view)", pareto(sweep)),
    ]
    return [(title, chart) for title, chart in found if chart is not None]
