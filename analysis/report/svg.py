"""Charts as SVG text: axes, lines, bands, bars and dots, coloured by the page's style sheet.

Coordinates are given in data units. Colours are classes (``s0`` .. ``s7`` for series, ``floor`` for the noise
floor), so that one page serves light and dark.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 20, 10, 40
_TITLED = 26
"""Room above a chart whose vertical axis has a title: it stands there, upright."""
SERIES = 8

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: its title, its range in data units, whether it is logarithmic, and how its ticks read."""

    title: str
    low: float
    high: float
    log: bool = False
    text: Callable[[float], str] = lambda value: f"{value:g}"

    def place(self, value: float) -> float:
        """Where a value lies, 0 to 1; values outside the range lie at its end."""
        if self.log:
            value, low, high = (math.log10(max(v, 1e-12)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round values inside the range, four to seven of them where possible."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def axis_for(
    values: Iterable[float], title: str, *, log: bool = False, text: Callable[[float], str], zero: bool = False
) -> Axis:
    """An axis that holds all values, with a little room; from 0 where ``zero``."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(known), max(known)) if known else (1.0, 2.0)
    if log:
        low, high = low / 1.05, high * 1.05
        if high / low < 1.5:
            # A subnormal number times 1.3 may be itself.
            low, high = low / 1.3, max(high * 1.3, sys.float_info.min)
    else:
        low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
        room = (high - low) * 0.04 or abs(high) * 0.04 or 0.5
        low, high = (low if zero and low == 0 else low - room), high + room
    return Axis(title=title, low=low, high=high, log=log, text=text)


def _linear_ticks(low: float, high: float) -> list[float]:
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) >= 3:
            break
    if len(found) < 2:
        return _linear_ticks(low, high)
    return found[:: -(-len(found) // 7)]


@dataclass
class Chart:
    """A chart that is drawn piece by piece and rendered once.

    Args:
        title: what it shows, read out by screen readers.
        x, y: its axes.
    """

    title: str
    x: Axis
    y: Axis
    height: int = HEIGHT
    width: int = WIDTH
    left: int = _LEFT
    _parts: list[str] = field(default_factory=list)

    @property
    def top(self) -> int:
        """The pixel row at which the drawn area begins."""
        return _TITLED if self.y.title else _TOP

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        return self.left + self.x.place(x) * (right - self.left), bottom - self.y.place(y) * (bottom - self.top)

    def line(self, points: Points, style: str, *, step: bool = False) -> None:
        """A line through points, as a staircase where ``step``."""
        if points:
            self._parts.append(f'<path class="line {style}" d="{self._path(points, step)}"/>')

    def band(self, lower: Points, upper: Points, style: str) -> None:
        """The area between two lines."""
        if lower and upper:
            there = self._path(upper, False)
            back = self._path(list(reversed(lower)), False).replace("M", "L", 1)
            self._parts.append(f'<path class="band {style}" d="{there}{back}Z"/>')

    def bar(self, x: tuple[float, float], y: tuple[float, float], style: str, hint: str = "") -> None:
        """A filled rectangle, with a hint that shows on hovering."""
        (x0, y0), (x1, y1) = self.at(x[0], y[0]), self.at(x[1], y[1])
        left, top, wide, high = min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self._parts.append(
            f'<rect class="bar {style}" x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}">'
            f"{title}</rect>"
        )

    def marker(self, x: float, y: float, style: str, hint: str = "", *, radius: float = 3.5) -> None:
        """A round mark at a point, with a hint that shows on hovering."""
        px, py = self.at(x, y)
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self._parts.append(f'<circle class="{style}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}">{title}</circle>')

    def hover(self, points: Points, hints: Sequence[str]) -> None:
        """Invisible marks that show their values on hovering."""
        for (x, y), hint in zip(points, hints, strict=True):
            self.marker(x, y, "hover", hint, radius=6)

    def margin_label(self, y: float, text: str, style: str = "") -> None:
        """A word left of the drawn area, at a value of the vertical axis."""
        py = self.at(self.x.low, y)[1]
        kind = f' class="{style}"' if style else ""
        self._parts.append(f'<text{kind} x="{self.left - 8}" y="{py + 4:.1f}" text-anchor="end">{escape(text)}</text>')

    def dots(self, points: Points, style: str) -> None:
        """Many dots in one path."""
        marks = "".join("M{:.0f} {:.0f}h0".format(*self.at(*point)) for point in points)
        if marks:
            self._parts.append(f'<path class="dots {style}" d="{marks}"/>')

    def rule(self, *, x: float | None = None, y: float | None = None, text: str = "") -> None:
        """A dashed line across the chart at one value, with a word beside it."""
        if x is not None:
            a, b = self.at(x, self.y.low), self.at(x, self.y.high)
        else:
            value = self.y.low if y is None else y
            a, b = self.at(self.x.low, value), self.at(self.x.high, value)
        self._parts.append(f'<path class="rule" d="M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}"/>')
        if text:
            # At the foot, where a rising curve leaves room, on the side that has more of it.
            right = x is None or a[0] > self.width * 0.7
            end = b if x is None else a
            anchor, px = ("end", end[0] - 4) if right else ("start", a[0] + 4)
            place = f'x="{px:.1f}" y="{a[1] - 5:.1f}" text-anchor="{anchor}"'
            self._parts.append(f'<text class="note" {place}>{escape(text)}</text>')

    def label(self, x: float, y: float, text: str, *, anchor: str = "start", style: str = "") -> None:
        """A word at a point."""
        px, py = self.at(x, y)
        kind = f' class="{style}"' if style else ""
        self._parts.append(f'<text{kind} x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def _path(self, points: Points, step: bool) -> str:
        pieces = []
        before = None
        for x, y in points:
            px, py = self.at(x, y)
            here = f"{px:.1f} {py:.1f}"
            if here == before:
                continue
            if before is None:
                pieces.append(f"M{here}")
            elif step:
                pieces.append(f"H{px:.1f}V{py:.1f}")
            else:
                pieces.append(f"L{here}")
            before = here
        return "".join(pieces)

    def render(self, *, y_ticks: bool = True) -> str:
        """The chart as an ``svg`` element."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f"{self.drawing(y_ticks=y_ticks)}</svg>"
        )

    def drawing(self, *, y_ticks: bool = True) -> str:
        """What is inside that element: grid, ticks, titles and everything drawn."""
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        grid = []
        for value in self.x.ticks():
            px = self.at(value, self.y.low)[0]
            grid.append(f'<path class="grid" d="M{px:.1f} {self.top}V{bottom}"/>')
            grid.append(
                f'<text x="{px:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(self.x.text(value))}</text>'
            )
        for value in self.y.ticks() if y_ticks else []:
            py = self.at(self.x.low, value)[1]
            grid.append(f'<path class="grid" d="M{self.left} {py:.1f}H{right}"/>')
            grid.append(
                f'<text x="{self.left - 5}" y="{py + 4:.1f}" text-anchor="end">{escape(self.y.text(value))}</text>'
            )
        middle = (self.left + right) / 2
        grid.append(
            f'<text class="title" x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(self.x.title)}</text>'
        )
        if self.y.title:
            grid.append(f'<text class="title" x="4" y="14">{escape(self.y.title)}</text>')
        return "".join(grid) + "".join(self._parts)
