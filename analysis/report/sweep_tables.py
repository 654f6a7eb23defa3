"""What is said about a sweep, as sentences and plain rows."""

from collections.abc import Iterable
from datetime import datetime

from kvload.analysis import words
from kvload.analysis.report.tables import Facts, Row, TableData
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.sweep.model import Curve, Level, Sweep


def load_unit(sweep: Sweep) -> str:
    """What follows a load's number."""
    return "/s" if sweep.axis == "rate" else " in flight"


def limits_text(sweep: Sweep) -> str:
    """``TTFT 500 ms, TPOT 50 ms``."""
    return ", ".join(f"{words.METRIC_NAMES.get(m, m)} {words.seconds(v)}" for m, v in sweep.limits_s.items())


def capacity_text(sweep: Sweep, curve: Curve) -> str:
    """``13.6/s (12.9 to 14.8)``, or what is known where no level bounds it."""
    found, unit = curve.capacity, load_unit(sweep)
    if not curve.levels:
        return "not measured"
    if found.estimate is not None:
        ends = words.between(found, words.number)
        return f"{words.number(found.estimate)}{unit}" + (f" ({ends})" if ends else "")
    if curve.met_at is None:
        return f"less than {words.number(curve.levels[0].level)}{unit}"
    return f"at least {words.number(curve.met_at)}{unit}"


def headline(sweep: Sweep) -> list[str]:
    """One sentence a method, on what it carries."""
    base = next(curve for curve in sweep.curves if curve.baseline)
    said = []
    for curve in sweep.curves:
        if curve.baseline or curve.ratio is None:
            continue
        if not curve.levels:
            said.append(f"{curve.arm} was not measured{f': {curve.failed}' if curve.failed else ''}")
            continue
        said.append(_sentence(sweep, curve, base))
    if not said and base.levels:
        said.append(f"{base.arm} carries {capacity_text(sweep, base)} at {limits_text(sweep)}")
    return said


def _sentence(sweep: Sweep, curve: Curve, base: Curve) -> str:
    at = f"at {limits_text(sweep)}"
    ratio = curve.ratio
    if ratio is not None and ratio.estimate is None and ratio.low is not None and ratio.low > 1:
        return f"{curve.arm} carries at least {ratio.low:.2f} times the traffic of {base.arm} {at}"
    if ratio is not None and ratio.estimate is None and ratio.high is not None and ratio.high < 1:
        return f"{curve.arm} carries at most {ratio.high:.2f} times the traffic of {base.arm} {at}"
    if ratio is None or ratio.estimate is None:
        where = f"{curve.arm} {capacity_text(sweep, curve)}, {base.arm} {capacity_text(sweep, base)}"
        return f"{curve.arm} and {base.arm} cannot be compared {at}: {where}"
    ends = words.between(ratio, lambda value: f"{value:.2f}")
    times = f"{ratio.estimate:.2f}" + (f" ({ends})" if ends else "")
    if ratio.low is not None and ratio.low > 1:
        return f"{curve.arm} carries {times} times the traffic of {base.arm} {at}"
    if ratio.high is not None and ratio.high < 1:
        return f"{curve.arm} carries only {times} times the traffic of {base.arm} {at}"
    return f"{curve.arm}: no difference to {base.arm} in traffic carried can be told, {times} times {at}"


def identity(sweep: Sweep) -> str:
    """Model, engine, device, trace, repeats and date in one line."""
    server = next((curve.server for curve in sweep.curves if curve.server), None)
    parts = []
    if server is not None:
        parts.append(server.model or "unknown model")
        parts.append(" ".join(part for part in (server.engine, server.engine_version) if part) or "unknown engine")
        if server.device:
            parts.append(server.device)
    parts += [sweep.trace.path, {"free": "free-running", "forced": "forced lengths"}.get(sweep.mode, sweep.mode)]
    parts.append(words.plural(sweep.repeats, "repeat"))
    if sweep.started_at is not None:
        parts.append(f"{datetime.fromtimestamp(sweep.started_at).astimezone():%Y-%m-%d %H:%M}")
    return " · ".join(parts)


def facts(sweep: Sweep) -> Facts:
    """Limits, target, time and cost."""
    found = [("limits", f"{limits_text(sweep)}, met by {words.share(sweep.target, 0)} of the requests sent")]
    if sweep.gpu_hours is not None:
        found.append(("GPU time", f"{words.number(sweep.gpu_hours, 2)} GPU-hours under load"))
    if sweep.command:
        found.append(("command", sweep.command))
    return found


def summary_table(sweep: Sweep) -> TableData:
    """What each method carries."""
    unit = "/s" if sweep.axis == "rate" else "in flight"
    priced = any(curve.cost_per_million is not None for curve in sweep.curves)
    rows = []
    for curve in sweep.curves:
        best = curve.best
        rows.append(
            Row(
                cells=(
                    curve.arm,
                    _capacity_cell(curve),
                    "" if curve.baseline else _ratio_cell(curve.ratio),
                    words.number(curve.met_at),
                    words.number(curve.missed_at),
                    words.number(best.goodput_rps.estimate if best else None),
                    *((words.number(curve.cost_per_million),) if priced else ()),
                ),
                details=(
                    "",
                    words.between(curve.capacity, words.number),
                    words.between(curve.ratio, lambda value: f"{value:.2f}") if curve.ratio else "",
                    *("",) * (4 if priced else 3),
                ),
            )
        )
    level = f"{sweep.curves[0].capacity.level * 100:g} %"
    return TableData(
        title=f"What each method carries at {limits_text(sweep)}",
        columns=(
            *(
                "method",
                f"carries, {unit}",
                "times baseline",
                f"met at, {unit}",
                f"missed at, {unit}",
                "best goodput, /s",
            ),
            *(("cost per M tokens",) if priced else ()),
        ),
        rows=rows,
        caption=f"small figures: {level} interval; met at: the highest load at which {words.share(sweep.target, 0)} of "
        "the requests met the limits, missed at: the next one tried",
    )


def _capacity_cell(curve: Curve) -> str:
    if curve.capacity.estimate is not None:
        return words.number(curve.capacity.estimate)
    if not curve.levels:
        return words.ABSENT
    return f"< {words.number(curve.levels[0].level)}" if curve.met_at is None else f"≥ {words.number(curve.met_at)}"


def _ratio_cell(ratio: Estimate | None) -> str:
    if ratio is None or ratio.estimate is not None:
        return words.ABSENT if ratio is None else f"{ratio.estimate:.2f}"
    return f"≥ {ratio.low:.2f}" if ratio.low is not None else words.ABSENT


def levels_table(sweep: Sweep) -> TableData:
    """Every arm at every load."""
    levels = [(curve, level) for curve in sweep.curves for level in curve.levels]
    ttft = _unit(level.ttft_s.get(50.0) for _, level in levels)
    tpot = _unit(level.tpot_s.get(50.0) for _, level in levels)
    ordered = sorted(levels, key=lambda pair: pair[1].level)

    def times(values: dict[float, float | None], factor: float) -> tuple[str, ...]:
        return tuple(words.number(None if (v := values.get(p)) is None else v * factor) for p in (50.0, 99.0))

    rows = []
    for curve, level in ordered:
        rows.append(
            Row(
                cells=(
                    f"{words.number(level.level)} {curve.arm}",
                    f"{level.share.n:,}",
                    words.share(level.share.estimate).removesuffix(" %"),
                    words.number(level.goodput_rps.estimate),
                    *times(level.ttft_s, ttft[1]),
                    *times(level.tpot_s, tpot[1]),
                    words.number(level.output_tokens_per_s),
                    words.share(_most_cache(level), 0).removesuffix(" %"),
                ),
                details=(
                    *("", ""),
                    words.between(level.share, lambda value: f"{value * 100:.1f}"),
                    words.between(level.goodput_rps, words.number),
                    *("",) * 6,
                ),
            )
        )
    load = "load, /s" if sweep.axis == "rate" else "in flight"
    return TableData(
        title="Every load that was tried",
        columns=(
            *(f"{load}, method", "sent", "within limits, %", "goodput, /s"),
            *(f"TTFT p50, {ttft[0]}", "p99", f"TPOT p50, {tpot[0]}", "p99", "output tok/s", "cache, %"),
        ),
        rows=rows,
        caption="latencies of answered requests, the median of the repeats; cache: the pool's greatest use",
    )


def _most_cache(level: Level) -> float | None:
    return max((p.cache_usage for p in level.points if p.cache_usage is not None), default=None)


def _unit(values: Iterable[float | None]) -> tuple[str, float]:
    known = sorted(value for value in values if value is not None)
    return words.unit_for(known[len(known) // 2] if known else None)


def notes(sweep: Sweep) -> list[str]:
    """What to mistrust."""
    return [*sweep.notes, *(f"{curve.arm}: {curve.failed}" for curve in sweep.curves if curve.failed)]
