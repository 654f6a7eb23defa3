"""Which run was made where and when: a row for each place, a bar for each launch and each replay."""

from collections.abc import Mapping

from kvload.analysis import words
from kvload.analysis.comparison.model import Course
from kvload.analysis.report.forest import WIDE
from kvload.analysis.report.svg import Axis, Chart

_LEFT = 130
_ROW = 24
_MOST_ROWS = 32
"""With more places than this a picture would tell nothing that the list does not."""


def timeline(course: Course | None, styles: Mapping[str, str]) -> str:
    """The picture; empty where nothing is known, or where all runs followed each other in one place.

    Args:
        styles: class of each arm; one that is in no report (since all its runs failed) is grey.
    """
    stretches = [] if course is None else course.stretches
    places = sorted({stretch.place for stretch in stretches})
    if not 1 < len(places) <= _MOST_ROWS:
        return ""
    x = Axis(title="seconds, sessions joined", low=0.0, high=max(stretch.ended_s for stretch in stretches))
    y = Axis(title="", low=0.0, high=float(len(places)))
    chart = Chart("runs by place and time", x, y, height=60 + _ROW * len(places), width=WIDE, left=_LEFT)
    for row, place in enumerate(places):
        base = len(places) - 1 - row
        chart.margin_label(base + 0.5, words.shortened(place, 18))
        for stretch in stretches:
            if stretch.place == place:
                style = styles.get(stretch.arm, "floor")
                inset = 0.1 if stretch.what == "replay" else 0.35
                hint = (
                    f"{stretch.arm}, repeat {stretch.repeat + 1}: {stretch.what}"
                    f" {stretch.ended_s - stretch.began_s:,.0f} s"
                )
                chart.bar(
                    (stretch.began_s, stretch.ended_s),
                    (base + inset, base + 1 - inset),
                    style if stretch.what == "replay" else f"pale {style}",
                    hint,
                )
    return chart.render(y_ticks=False)
