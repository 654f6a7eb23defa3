"""What routers gain, as a page: a curve for every arm, and the table behind it."""

import math
from collections.abc import Sequence

from kvload.analysis.report import page
from kvload.analysis.report.svg import Axis, Chart, axis_for
from kvload.analysis.routing.curve import Curve, Point
from kvload.analysis.routing.evaluate import Evaluation
from kvload.analysis.statistics.estimates import Estimate

LEGEND = (("the router", "s0"), ("its task alone", "s1"), ("at random", "floor"), ("an oracle, less its luck", "s2"))
HEADINGS = ("to the full cache", "score", "loss recovered", "over the task", "answer length", "net negatives", "bytes")


def render(found: Sequence[Evaluation], target: str, notes: Sequence[str]) -> str:
    """The whole page."""
    charts = []
    for each in found:
        title = f"{each.arm}: mean score over the share that is sent to the full cache"
        svg = score_chart(each.curve)
        charts.append((each.arm, title, svg.render() if svg else "", each.sentence, table(each.curve), each))
    return page.render(
        "route.html.j2",
        title="Which requests need the full cache",
        target=target,
        legend=LEGEND,
        charts=charts,
        headings=HEADINGS,
        notes=list(notes),
    )


def score_chart(curve: Curve) -> Chart | None:
    """Mean score over the share; None without scores."""
    points = [point for point in curve.points if point.score is not None and point.score.estimate is not None]
    if not points:
        return None
    values = [point.score.estimate or 0.0 for point in points if point.score]
    values += [end for point in points if point.score for end in (point.score.low, point.score.high) if end is not None]
    values += [other for point in points for other in (point.oracle, point.by_task) if other is not None]
    x = Axis(title="sent to the full cache", low=0.0, high=1.0, text=lambda value: f"{value:.0%}")
    chart = Chart(f"{curve.arm}: mean score", x, axis_for(values, "mean score", text=lambda value: f"{value:.3g}"))
    low = [(point.share, point.score.low) for point in points if point.score and point.score.low is not None]
    high = [(point.share, point.score.high) for point in points if point.score and point.score.high is not None]
    chart.band(low, high, "s0")
    chart.line([(point.share, point.random) for point in points if point.random is not None], "floor")
    chart.line([(point.share, point.oracle) for point in points if point.oracle is not None], "s2")
    chart.line([(point.share, point.by_task) for point in points if point.by_task is not None], "s1")
    line = [(point.share, point.score.estimate or 0.0) for point in points if point.score]
    chart.line(line, "s0")
    chart.hover(line, [f"{share:.0%} to the full cache: {value:.4f}" for share, value in line])
    return chart


def table(curve: Curve, shares: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)) -> list[list[str]]:
    """The points at some shares, as words in the order of :data:`HEADINGS`."""
    return [row(point) for point in (curve.at(share) for share in shares)]


def row(point: Point) -> list[str]:
    """One point in words."""
    return [
        f"{point.share:.0%}",
        "" if point.score is None or point.score.estimate is None else f"{point.score.estimate:.4f}",
        _interval(point.recovered, 100, ".0f", " %") if 0 < point.share < 1 else "",
        _interval(point.over_task, 100, "+.2f") if 0 < point.share < 1 else "",
        "" if point.tokens is None or point.tokens.estimate is None else f"{math.expm1(point.tokens.estimate):+.1%}",
        _interval(point.net_negatives, 1, "+.0f"),
        "" if point.bytes_share is None else f"{point.bytes_share:.0%}",
    ]


def _interval(found: Estimate | None, scale: float, form: str, unit: str = "") -> str:
    if found is None or found.estimate is None:
        return ""
    text = f"{found.estimate * scale:{form}}"
    if found.low is not None and found.high is not None and found.low != found.high:
        text += f" ({found.low * scale:{form}} to {found.high * scale:{form}})"
    return text + unit
