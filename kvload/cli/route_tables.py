"""What ``kvload route`` and ``kvload lengths`` print."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from kvload.analysis.routing.curve import Curve
    from kvload.analysis.routing.evaluate import Evaluation
    from kvload.analysis.routing.lengths import LengthModel
    from kvload.analysis.statistics.estimates import Estimate
    from kvload.route_model import Routers, Skill


def print_fit(routers: "Routers", curves: "Mapping[str, Curve]", share: float) -> None:
    """One line an arm, the verdicts, and what each router gains out of fold."""
    table = _table("arm", "n", "fragile", "A/A", "skill over the task", "Brier skill", "AUC", "80 % holds", "trees")
    for router in routers.routers:
        fitted = router.fitted
        figures = [
            figure for figure in (router.event, router.loss, router.location, router.scale) if figure is not None
        ]
        table.add_row(
            router.arm,
            f"{fitted.n:,}",
            f"{fitted.events:.1%}",
            "-" if fitted.floor_events is None else f"{fitted.floor_events:.1%}",
            _skill(fitted.skill),
            _skill(fitted.brier),
            "-" if fitted.auc is None else f"{fitted.auc:.2f}",
            "-" if fitted.coverage is None else f"{fitted.coverage:.1%}",
            str(sum(len(figure.trees) for figure in figures)),
        )
    _print(table)
    _say("all out of fold, by conversation; fragile: the share with the event; A/A: the same between equal runs")
    for router in routers.routers:
        _say(f"{router.arm}: {router.fitted.sentence}")
        if router.fitted.discounted >= 0.0005:
            taken = f"{router.fitted.discounted:.1%}"
            _say(f"{router.arm}: {taken} of the weight is taken off where the baseline's own two runs differ")
    _print_gain(curves, share)
    if routers.recogniser is not None:
        names = len(routers.recogniser.tasks)
        _say(f"a request's task is recognised by its words in {routers.recogniser.accuracy:.1%} ({names} tasks)")
    for note in routers.notes:
        _say(note)


def print_evaluation(found: "Sequence[Evaluation]", share: float, notes: Sequence[str]) -> None:
    """One line an arm, the verdicts, and the curve's points."""
    table = _table("arm", "n", "fragile", "A/A", "skill over the task", "Brier skill", "AUC", "80 % holds")
    for each in found:
        table.add_row(
            each.arm,
            f"{each.n:,}",
            f"{each.events:.1%}",
            "-" if each.floor_events is None else f"{each.floor_events:.1%}",
            _skill(each.skill),
            _skill(each.brier),
            "-" if each.auc is None else f"{each.auc:.2f}",
            "-" if each.coverage is None else f"{each.coverage:.1%}",
        )
    _print(table)
    for each in found:
        _say(f"{each.arm}: {each.sentence}")
        if each.unknown_tasks:
            _say(f"{each.arm}: {each.unknown_tasks} of {each.n} requests are of tasks that the fit did not see")
        if each.censored or each.unknown:
            _say(f"{each.arm}: {each.censored} lengths known from one side only, {each.unknown} not at all")
    _print_gain({each.arm: each.curve for each in found}, share)
    for note in notes:
        _say(note)


def print_lengths(models: "Sequence[LengthModel]", notes: Sequence[str]) -> None:
    """One line an arm and task."""
    table = _table("arm", "task", "n", "10 %", "median", "90 %", "x 1.5 or more", "A/A: 10 to 90 %")
    for model in models:
        for each in model.tasks:
            floor = "-" if each.floor is None else f"{_ratio(each.floor[0])} to {_ratio(each.floor[2])}"
            cells = [_ratio(quantile) for quantile in each.quantiles]
            name = "all" if each.task is None else each.task
            table.add_row(model.arm, name, f"{each.n:,}", *cells, f"{each.longer:.1%}", floor)
    _print(table)
    _say("answer length over the baseline's; a dash lies beyond what max_tokens let be seen")
    for model in models:
        if model.censored or model.unknown:
            _say(f"{model.arm}: {model.censored} ratios known from one side only, {model.unknown} not at all")
    for note in notes:
        _say(note)


def _print_gain(curves: "Mapping[str, Curve]", share: float) -> None:
    if not any(point.score is not None for curve in curves.values() for point in curve.points):
        return
    table = _table(
        "arm", "all compressed", "all full", f"{share:.0%} to full", "at random", "by task", "oracle", "loss recovered"
    )
    for name, curve in curves.items():
        at, none, every = curve.at(share), curve.at(0.0), curve.at(1.0)
        table.add_row(
            name,
            _score(none.score),
            _score(every.score),
            _score(at.score),
            "-" if at.random is None else f"{at.random:.4f}",
            "-" if at.by_task is None else f"{at.by_task:.4f}",
            "-" if at.oracle is None else f"{at.oracle:.4f}",
            "none to recover" if at.recovered is None else _interval(at.recovered),
        )
    _print(table)
    notes = {curve.oracle_note for curve in curves.values()}
    _say(f"mean scores; the oracle knows both outcomes: {'; '.join(sorted(notes))}")


def _table(*headings: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"arm", "task"} else "right", overflow="fold")
    return table


def _print(table: "Table") -> None:
    from kvload.terminal import console

    console().print(table)


def _say(text: str) -> None:
    from kvload.terminal import console

    console().print(text)


def _skill(found: "Skill | Estimate") -> str:
    if found.estimate is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.estimate:+.1%}"
    return f"{found.estimate:+.1%} ({found.low:+.1%} to {found.high:+.1%})"


def _score(found: "Estimate | None") -> str:
    return "-" if found is None or found.estimate is None else f"{found.estimate:.4f}"


def _interval(found: "Estimate") -> str:
    if found.estimate is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.estimate:.0%}"
    return f"{found.estimate:.0%} ({found.low:.0%} to {found.high:.0%})"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
