"""The changes of all arms with their intervals, beside what two runs of the same server differ by; scores by task."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvload.analysis import words
from kvload.analysis.comparison.model import Comparison
from kvload.analysis.report.svg import Axis, Chart, axis_for
from kvload.analysis.statistics.layout import Effect

WIDE = 760
_LEFT = 190
_ROW = 22
_MOST = 4.0
"""A change beyond this (relative; 4 is five times as much) lies at the chart's end, so that the others can be read."""


@dataclass(frozen=True)
class _Topic:
    name: str
    title: str
    better: str
    points: bool = False


_TOPICS = (
    _Topic("goodput", "goodput", "more is better"),
    _Topic("attainment", "within the limits", "more is better", points=True),
    _Topic("ttft", "TTFT", "less is better"),
    _Topic("tpot", "TPOT", "less is better"),
    _Topic("latency", "time at equal lengths", "less is better"),
    _Topic("lengths", "answer length", "nearer 0 is better"),
    _Topic("quality", "score", "more is better", points=True),
)


def changes(comparison: Comparison, styles: Mapping[str, str]) -> str:
    """A row for each topic and arm: the change, its interval, and as a grey band what the A/A pair differs by."""
    rows: list[tuple[_Topic, str, Effect]] = []
    for topic in _TOPICS:
        for change in comparison.comparisons:
            effect = change.effects.get(topic.name)
            if not change.floor and effect is not None and effect.change.estimate is not None:
                rows.append((topic, change.name, effect))
    if not rows:
        return ""
    ends = [
        min(max(end, -1.0), _MOST)
        for _, _, effect in rows
        for end in (effect.change.low, effect.change.high, effect.change.estimate)
        if end is not None
    ]
    x = axis_for([0.0, *ends], f"change against {comparison.baseline.name}", text=_signed_percent)
    topics = list(dict.fromkeys(topic for topic, _, _ in rows))
    height = 60 + _ROW * (len(rows) + len(topics))
    y = Axis(title="", low=0.0, high=float(len(rows) + len(topics)))
    chart = Chart("changes with their intervals", x, y, height=height, width=WIDE, left=_LEFT)
    place = y.high
    for topic in topics:
        mine = [(name, effect) for each, name, effect in rows if each is topic]
        place -= 1
        chart.label(x.low, place + 0.3, f"{topic.title}: {topic.better}", style="note")
        noise = next((effect.noise for _, effect in mine if effect.noise is not None), None)
        if noise is not None:
            hint = f"two runs of {comparison.baseline.name} differ by {words.share(noise)} in {topic.title}"
            chart.bar((max(-noise, x.low), min(noise, x.high)), (place - len(mine), place), "pale floor", hint)
        for name, effect in mine:
            place -= 1
            _row(chart, topic, name, effect, styles[name], place + 0.5)
    chart.rule(x=0.0)
    return chart.render(y_ticks=False)


def _row(chart: Chart, topic: _Topic, name: str, effect: Effect, style: str, y: float) -> None:
    change = effect.change
    low = chart.x.low if change.low is None else change.low
    high = chart.x.high if change.high is None else change.high
    hint = f"{name}, {topic.title}: {words.change_text(change, 'points' if topic.points else 'relative')}"
    chart.line([(low, y), (high, y)], f"interval {style}")
    chart.marker(change.estimate or 0.0, y, f"mark {style}", hint, radius=5)
    chart.margin_label(y, words.shortened(name, 24))


def _signed_percent(value: float) -> str:
    return "0" if round(value, 6) == 0 else f"{value * 100:+.3g} %"


def task_scores(comparison: Comparison, styles: Mapping[str, str]) -> str:
    """The mean score of every arm in every task, the baseline's first."""
    answers = comparison.answers
    if answers is None:
        return ""
    base = comparison.baseline.name
    tasks = list(dict.fromkeys(task.task for found in answers.arms.values() for task in found.tasks if task.task))
    names = [name for name in answers.arms if name in styles and not _is_floor(comparison, name)]
    if not tasks or not names:
        return ""
    rows = len(tasks) * (len(names) + 2)
    x = Axis(title="mean score", low=0.0, high=1.0, text=lambda value: f"{value:g}")
    y = Axis(title="", low=0.0, high=float(rows))
    chart = Chart("scores by task", x, y, height=56 + 13 * rows, width=WIDE, left=_LEFT)
    place = float(rows)
    for task in tasks:
        found = {name: next((t for t in answers.arms[name].tasks if t.task == task), None) for name in names}
        first = next((change for change in found.values() if change is not None), None)
        scores = {base: first.base_mean if first else None}
        scores |= {name: change.arm_mean if change else None for name, change in found.items()}
        place -= 0.5
        top = place
        for name, score in scores.items():
            place -= 1
            if score is not None:
                chart.bar(
                    (0.0, score), (place + 0.1, place + 0.9), styles[name], f"{task}, {name}: {words.score(score)}"
                )
        chart.margin_label((top + place) / 2, task)
        place -= 0.5
    return chart.render(y_ticks=False)


def _is_floor(comparison: Comparison, name: str) -> bool:
    return comparison.floor is not None and comparison.floor.name == name
