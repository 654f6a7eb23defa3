"""The charts of reports, from the curves that reports hold."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from kvload.analysis import words
from kvload.analysis.comparison.lengths import LOWEST_BIN, LengthChange
from kvload.analysis.comparison.model import ArmComparison, Comparison
from kvload.analysis.report.svg import SERIES, Axis, Chart, Points, axis_for
from kvload.analysis.run.model import Metric
from kvload.analysis.statistics.significance import SurvivalCurve

Series = Sequence[tuple[str, Points]]
"""Lines with their style classes."""

_PARTS = {"queueing": "p0", "prefill": "p1", "speed": "p2", "length": "p3"}
_LINE_POINTS = 200
_TOLD = (10, 25, 50, 75, 90, 95, 99)
"""Percentiles whose values show on hovering."""

_HOVERS = 300
"""Values that show on hovering, in one chart at most."""


def styles(comparison: Comparison) -> dict[str, str]:
    """A style class for every arm: the floor grey, the baseline first, dashes where colours repeat."""
    found = {}
    colour = 0
    for arm in comparison.arms:
        if arm.floor:
            found[arm.name] = "floor"
            continue
        found[arm.name] = f"s{colour % SERIES}" + (" again" if colour >= SERIES else "")
        colour += 1
    return found


def _percent(value: float) -> str:
    return f"{value * 100:.0f} %"


def _short_seconds(value_s: float) -> str:
    return words.seconds(float(f"{value_s:.3g}")).replace(" ", " ")


def latency_ecdf(name: str, metrics: Mapping[str, Metric], limit_s: float | None, names: Mapping[str, str]) -> str:
    """The share of requests (of gaps, for ITL) that took at most a time; one line per style class.

    Args:
        name: of the latency.
        metrics: by style class.
        limit_s: drawn as a rule where there is one.
        names: of the arms by style class, for what shows on hovering; empty for a single run.
    """
    known = {style: metric for style, metric in metrics.items() if metric.n}
    if not known:
        return ""
    everything = [value for metric in known.values() for value in metric.ecdf_s]
    least = min((value for value in everything if value > 0), default=1e-6)
    x = axis_for([*everything, *([limit_s] if limit_s else [])], "", log=True, text=_short_seconds)
    chart = Chart(f"ECDF of {words.METRIC_NAMES[name]}", x, _share_axis())
    for style, metric in known.items():
        last = len(metric.ecdf_s) - 1
        points = [(max(value, least), place / last) for place, value in enumerate(metric.ecdf_s)]
        chart.line(points, style)
        told = [(percent, points[round(percent / 100 * last)]) for percent in _TOLD]
        who = f"{names[style]} " if style in names else ""
        chart.hover(
            [point for _, point in told],
            [f"{who}p{percent}: {_short_seconds(point[0])}" for percent, point in told],
        )
    if limit_s:
        chart.rule(x=limit_s, text="limit")
    return chart.render()


def _share_axis(title: str = "") -> Axis:
    return Axis(title=title, low=0.0, high=1.0, text=_percent)


def lines_over_time(
    title: str,
    series: Series,
    text: Literal["number", "share", "seconds"] = "number",
    *,
    names: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> str:
    """Gauges, counts or times over the seconds of a run.

    Args:
        title: what it shows.
        series: lines with their style classes.
        text: what the values are.
        names: of the lines by style class, for what shows on hovering.
        limit: drawn as a rule where there is one.
    """
    if not any(points for _, points in series):
        return ""
    x = axis_for([t for _, points in series for t, _ in points], "seconds", text=words.number, zero=True)
    values = [value for _, points in series for _, value in points]
    form = {"number": words.number, "share": _percent, "seconds": _short_seconds}[text]
    y = _share_axis() if text == "share" else axis_for(values, "", text=form, zero=True)
    chart = Chart(title, x, y)
    if limit is not None and limit <= y.high:
        chart.rule(y=limit, text="limit")
    for style, points in series:
        chart.line(_thin(points), style, step=text == "number")
        told = points[:: -(-len(points) * len(series) // _HOVERS) or 1]
        who = f"{names[style]} " if names and style in names else ""
        chart.hover(told, [f"{who}at {words.number(when)} s: {form(value)}" for when, value in told])
    return chart.render()


def prompt_scatter(points: Points, style: str, limit_s: float | None) -> str:
    """TTFT against the length of the prompt, request by request."""
    known = [(tokens, ttft_s) for tokens, ttft_s in points if tokens > 0 and ttft_s > 0]
    if not known:
        return ""
    x = axis_for([tokens for tokens, _ in known], "prompt tokens", log=True, text=words.number)
    times = [ttft_s for _, ttft_s in known] + ([limit_s] if limit_s else [])
    chart = Chart("TTFT against prompt length", x, axis_for(times, "", log=True, text=_short_seconds))
    chart.dots(known, style)
    if limit_s:
        chart.rule(y=limit_s, text="limit")
    return chart.render()


def gaps_by_running(bands: Sequence[tuple[int, float, float]], covered: int | None) -> str:
    """Gaps between tokens against how many requests ran, median and 90th percentile.

    Args:
        bands: running requests in the middle of each band, p50 and p90 in seconds.
        covered: most requests that CUDA graphs cover, drawn as a rule.
    """
    if len(bands) < 2:
        return ""
    x = axis_for([float(middle) for middle, _, _ in bands], "running requests", log=True, text=words.number)
    y = axis_for([value for _, *values in bands for value in values], "", text=_short_seconds, zero=True)
    chart = Chart("Gap between tokens by running requests", x, y)
    if covered is not None and x.low <= covered <= x.high:
        chart.rule(x=covered, text="CUDA graphs end")
    for style, place, name in (("s0", 1, "p50"), ("thin s0", 2, "p90")):
        points = [(float(band[0]), float(band[place])) for band in bands]
        chart.line(points, style)
        chart.hover(points, [f"{name} at {words.number(at)}: {_short_seconds(value)}" for at, value in points])
    return chart.render()


def _thin(points: Points) -> Points:
    step = -(-len(points) // _LINE_POINTS) or 1
    return [*points[::step], points[-1]] if points else []


def attainment_over_scale(series: Sequence[tuple[str, Sequence[tuple[float, float | None]]]]) -> str:
    """Attainment where all limits are tightened or relaxed by a factor."""
    known = [(style, [(x, y) for x, y in points if y is not None]) for style, points in series]
    if not any(points for _, points in known):
        return ""
    scales = [x for _, points in known for x, _ in points]
    chart = Chart("SLO attainment", axis_for(scales, "all limits times", log=True, text=words.ratio), _share_axis())
    for style, points in known:
        chart.line(points, style)
    chart.rule(x=1.0)
    return chart.render()


def difference_histogram(lengths: LengthChange, style: str, floor: LengthChange | None) -> str:
    """Shares of D in bins, with the A/A pair's as an outline; the first bar holds everything further left.

    The bin that starts at 0 holds all unchanged lengths and would dwarf the others: the scale is theirs, and its own
    share is written beside it.
    """
    width = lengths.histogram.edges[1] - lengths.histogram.edges[0]
    bars = _histogram_shares(lengths)
    outline = _histogram_shares(floor) if floor else []
    most = max([share for edge, share in [*bars, *outline] if edge != 0], default=0.0) * 1.15 or 1.0
    x = Axis(title="D: answer grew ← 0 → answer shrank", low=LOWEST_BIN - width, high=1.0, text=_percent)
    chart = Chart("histogram of D", x, Axis(title="", low=0.0, high=most, text=_fine_percent))
    for edge, share in bars:
        if share:
            hint = f"{_percent(edge)} to {_percent(edge + width)}: {words.share(share)}"
            chart.bar((edge, edge + width * 0.92), (0.0, share), f"pale {style}", hint)
            if share > most:
                chart.label(edge + width * 1.2, most * 0.93, f"{words.share(share)} here")
    chart.line([point for edge, share in outline for point in ((edge, share), (edge + width, share))], "floor")
    chart.rule(x=0.0)
    return chart.render()


def _fine_percent(value: float) -> str:
    return f"{value * 100:.3g} %"


def _histogram_shares(lengths: LengthChange) -> list[tuple[float, float]]:
    found = lengths.histogram
    width = found.edges[1] - found.edges[0]
    counts = [found.below, *found.counts]
    edges = [found.edges[0] - width, *found.edges[:-1]]
    return [(edge, count / lengths.n if lengths.n else 0.0) for edge, count in zip(edges, counts, strict=True)]


def difference_ecdf(changes: Sequence[tuple[str, ArmComparison]], level: float) -> str:
    """The share of requests with a D up to each value; the A/A pair as a band of the width chance gives it."""
    measured = [(style, change.lengths) for style, change in changes if change.lengths and change.lengths.n]
    if not measured:
        return ""
    x = Axis(title="D: answer grew ← 0 → answer shrank", low=LOWEST_BIN, high=1.0, text=_percent)
    chart = Chart("ECDF of D", x, _share_axis())
    for style, lengths in measured:
        # Each step before the next keeps the curve a staircase after thinning.
        points = [(LOWEST_BIN, 0.0), *lengths.ecdf, (1.0, 1.0)]
        if style == "floor":
            # Dvoretzky-Kiefer-Wolfowitz band with Massart's constant.
            half = math.sqrt(math.log(2 / (1 - level)) / (2 * lengths.n))
            chart.band([(v, max(s - half, 0)) for v, s in points], [(v, min(s + half, 1)) for v, s in points], style)
        chart.line(points, style, step=True)
    chart.rule(x=0.0)
    return chart.render()


def length_scatter(lengths: LengthChange, style: str, most: int) -> str:
    """Length under the arm against length under the baseline, request by request."""
    points = lengths.scatter[:: -(-len(lengths.scatter) // most) or 1]
    if not points:
        return ""
    known = [value for base, other, _ in points for value in (base, other)]
    x = axis_for(known, "tokens under the baseline", log=True, text=words.number)
    chart = Chart("answer lengths", x, Axis(title="", low=x.low, high=x.high, log=True, text=words.number))
    chart.line([(x.low, x.low), (x.high, x.high)], "thin floor")
    chart.dots([(base, other) for base, other, cut in points if not cut and other > 0], style)
    chart.dots([(base, other) for base, other, cut in points if cut and other > 0], f"hollow {style}")
    return chart.render()


def survival(lengths: LengthChange, style: str) -> str:
    """The share of answers longer than a length: Kaplan-Meier, and dashed the naive curve."""
    curves: list[tuple[str, SurvivalCurve]] = [
        ("s0", lengths.curve_base),
        (style, lengths.curve_other),
        ("thin s0", lengths.naive_base),
        (f"thin {style}", lengths.naive_other),
    ]
    if not lengths.n:
        return ""
    longest = max(curve.lengths[-1] for _, curve in curves)
    x = Axis(title="tokens", low=0.0, high=longest, text=words.number)
    chart = Chart("answers longer than", x, _share_axis())
    for kind, curve in curves:
        chart.line([(0.0, 1.0), *zip(curve.lengths, curve.longer, strict=True)], kind, step=True)
    return chart.render()


def decomposition_bars(changes: Sequence[ArmComparison], names: Mapping[str, str]) -> str:
    """For each arm the parts of its change of E2E, gains to the left and losses to the right, and their sum."""
    spans = []
    for change in changes:
        parts = [part.estimate or 0.0 for part in change.decomposition.parts.values()]
        spans += [sum(p for p in parts if p < 0), sum(p for p in parts if p > 0)]
    if not any(spans):
        return ""
    room = (max(spans) - min(spans)) * 0.03
    x = Axis(title="change of E2E per request", low=min(spans) - room, high=max(spans) + room, text=_signed_seconds)
    rows = len(changes)
    y = Axis(title="", low=0.0, high=float(rows))
    chart = Chart("decomposition of E2E", x, y, height=56 + 46 * rows)
    for place, change in enumerate(changes):
        low = rows - place - 0.82
        below = above = 0.0
        for name, part in change.decomposition.parts.items():
            size = part.estimate or 0.0
            start = below if size < 0 else above
            hint = f"{names[change.name]}: {_part_name(name, change)} {_signed_seconds(size)}"
            chart.bar((start, start + size), (low, low + 0.42), _PARTS[name], hint)
            below, above = (below + size, above) if size < 0 else (below, above + size)
        total = change.decomposition.total.estimate or 0.0
        chart.line([(total, low - 0.08), (total, low + 0.5)], "total")
        chart.label(x.low, low + 0.52, f"{words.shortened(names[change.name], 34)}: {_signed_seconds(total)}")
    chart.rule(x=0.0)
    return chart.render(y_ticks=False)


def _signed_seconds(value_s: float) -> str:
    rounded = float(f"{value_s:.3g}")
    return "0" if rounded == 0 else ("+" if rounded > 0 else "") + words.seconds(rounded)


def part_legend(changes: Sequence[ArmComparison]) -> list[tuple[str, str]]:
    """The parts of the decomposition with their style classes."""
    names = {part: _part_name(part, change) for change in changes for part in change.decomposition.parts}
    return [(names[part], style) for part, style in _PARTS.items() if part in names]


def _part_name(part: str, change: ArmComparison) -> str:
    """A part's name; without queueing times of single requests, what is called prefill holds the waiting as well."""
    return words.WAIT_AND_PREFILL if part == "prefill" and "queueing" not in change.decomposition.parts else part
