"""The study's two pictures: how far answers' lengths move in every set, and whether the probe ranks methods alike."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from kvload.analysis.report.page import style
from kvload.analysis.report.svg import Axis, Chart, axis_for
from kvload.errors import UsageError
from kvload.scripts.real_study import probe_scores

WIDE = 760
_LEFT = 190
_ROW = 20
_MARGIN = 12
_FURTHEST = 1.5
"""A change beyond this (1.5 is two and a half times as many tokens) lies at the chart's end."""


@dataclass(frozen=True)
class Found:
    """One set's comparison as ``kvload compare --json`` prints it."""

    name: str
    comparison: dict[str, Any]

    def arms(self) -> list[dict[str, Any]]:
        """What was compared with the baseline, the baseline's second run left out."""
        return [change for change in self.comparison["comparisons"] if not change["floor"] and change["lengths"]]

    def lost(self) -> dict[str, float]:
        """By arm, the score that it loses against the baseline; nothing where the set has no scores."""
        changes = self.comparison.get("quality", {}).get("changes", [])
        return {
            each["arm"]: each["base_mean"] - each["arm_mean"]
            for each in changes
            if each["task"] is None and None not in (each["base_mean"], each["arm_mean"])
        }


def draw(study: Path, names: Sequence[str], probe: Path, folder: Path) -> list[Path]:
    """Write the pictures of a study.

    Args:
        study: its folder, in which every set has a ``NAME.json``.
        names: the sets, in the order of the picture.
        probe: the page with the probe's table.
        folder: where ``real-model-lengths.svg`` and ``real-model-ranks.svg`` go.

    Returns:
        What was written; the second only where a set has scores and its methods are in the probe's table.

    Raises:
        UsageError: no set was compared.
    """
    found = [
        Found(name, json.loads(path.read_text(encoding="utf-8")))
        for name in names
        if (path := study / f"{name}.json").is_file()
    ]
    if not found:
        raise UsageError("nothing was compared yet", where=str(study), hint="make the study first")
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "real-model-lengths.svg"]
    written[0].write_text(lengths(found), encoding="utf-8")
    ranks = scores(found, probe_scores(probe.read_text(encoding="utf-8"))) if probe.is_file() else ""
    if ranks:
        written.append(folder / "real-model-ranks.svg")
        written[1].write_text(ranks, encoding="utf-8")
    return written


def lengths(found: Sequence[Found]) -> str:
    """By set and method, the change of all answers' tokens together with its 95 % interval; grey: two equal servers."""
    rows = sum(len(each.arms()) + 1 for each in found)
    ends = [
        min(max(value - 1, -1.0), _FURTHEST)
        for each in found
        for arm in each.arms()
        for value in arm["lengths"]["ratio_total"].values()
        if isinstance(value, float)
    ]
    x = axis_for([0.0, *ends], "change of all answers' tokens together, against none", text=_percent)
    y = Axis(title="", low=0.0, high=float(rows))
    chart = Chart("change of answer lengths", x, y, height=60 + _ROW * rows, width=WIDE, left=_LEFT)
    place = y.high
    for each in found:
        arms = each.arms()
        place -= 1
        chart.label(x.low, place + 0.3, each.name, style="note")
        floor = next((change for change in each.comparison["comparisons"] if change["floor"]), None)
        noise = floor["lengths"]["ratio_total"] if floor and floor["lengths"] else {}
        if noise.get("low") is not None and noise.get("high") is not None:
            hint = f"{each.name}: two servers without compression"
            reach = max(noise["low"] - 1, x.low), min(noise["high"] - 1, x.high)
            chart.bar(reach, (place - len(arms), place), "pale floor", hint)
        for arm in sorted(arms, key=lambda one: one["name"]):
            place -= 1
            _row(chart, each.name, arm, place + 0.5)
    chart.rule(x=0.0)
    return _alone("How far answers' lengths move under each method (95 % intervals; grey: two equal servers)", chart)


def _row(chart: Chart, name: str, arm: dict[str, Any], y: float) -> None:
    ratio = arm["lengths"]["ratio_total"]
    if ratio["estimate"] is None:
        return
    low, high = (_inside(chart.x, ratio[end], side) for end, side in (("low", chart.x.low), ("high", chart.x.high)))
    style_name = "s1" if ratio["low"] is not None and ratio["low"] > 1 else "s0"
    hint = f"{name}, {arm['name']}: {_percent(ratio['estimate'] - 1)}"
    chart.line([(low, y), (high, y)], f"interval {style_name}")
    chart.marker(ratio["estimate"] - 1, y, f"mark {style_name}", hint, radius=4.5)
    chart.margin_label(y, arm["name"])


def _inside(axis: Axis, ratio: float | None, otherwise: float) -> float:
    return otherwise if ratio is None else min(max(ratio - 1, axis.low), axis.high)


def scores(found: Sequence[Found], probe: dict[str, float]) -> str:
    """What each method loses on the probe and on the set whose scores fall most; empty without such a set."""
    both = {
        each.name: [
            (method, 1 - probe[method], lost)
            for arm, lost in each.lost().items()
            if (method := arm.partition(":")[0]) in probe and not arm.startswith("none")
        ]
        for each in found
    }
    name = max(both, key=lambda key: max((abs(lost) for _, _, lost in both[key]), default=0.0))
    if not any(lost for _, _, lost in both[name]):
        return ""
    x = axis_for([0.0, *(seen for _, seen, _ in both[name])], "score lost on the probe", text=_plain)
    y = axis_for([0.0, *(lost for _, _, lost in both[name])], f"score lost on {name}", text=_plain)
    chart = Chart("scores lost on the probe and on the real model", x, y, height=420, width=WIDE, left=60)
    taken: list[tuple[float, float]] = []
    for method, seen, lost in sorted(both[name], key=lambda one: (one[2], one[1])):
        chart.marker(seen, lost, "mark s0", f"{method}: {seen:.3f} on the probe, {lost:.3f} on {name}", radius=4.5)
        # Names of methods that lie on one another stand in a row upwards.
        px, py = chart.at(seen, lost)
        while any(abs(px - one) < 70 and abs(py - other) < 13 for one, other in taken):
            py -= 13
        taken.append((px, py))
        right = px > 0.8 * WIDE
        beside = (-0.012 if right else 0.012) * (x.high - x.low)
        chart.label(seen + beside, _value_at(chart, py), method, anchor="end" if right else "start")
    return _alone(f"Do the probe and the real model agree? Scores lost by each method, {name}", chart)


def _value_at(chart: Chart, row: float) -> float:
    """The vertical axis' value at a pixel row."""
    foot, head = (chart.at(chart.x.low, end)[1] for end in (chart.y.low, chart.y.high))
    return chart.y.low + (foot - row) / (foot - head) * (chart.y.high - chart.y.low)


def _alone(title: str, chart: Chart) -> str:
    """A chart as an SVG file of its own, light or dark."""
    lines = textwrap.wrap(title, 88)
    top = 20 + 20 * len(lines)
    height = top + chart.height + _MARGIN
    heading = "".join(
        f'<text class="title" x="{_MARGIN}" y="{26 + 20 * number}" font-size="15">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" width="{WIDE}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">'
        f'<style>{style()}</style><rect class="paper" width="{WIDE}" height="{height}"/>{heading}'
        f'<g transform="translate(0 {top})">{chart.drawing(y_ticks=chart.y.title != "")}</g></svg>\n'
    )


def _percent(value: float) -> str:
    return "0" if round(value, 6) == 0 else f"{value * 100:+.3g} %"


def _plain(value: float) -> str:
    return f"{value:g}"
