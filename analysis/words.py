"""Figures as readers see them, the same in every renderer."""

from collections.abc import Callable, Sequence

from kvload.analysis.statistics.estimates import Estimate
from kvload.records import RunManifest

METRIC_NAMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "ttft_sched": "TTFT from schedule",
    "e2e_sched": "E2E from schedule",
    "lag": "schedule lag",
}
WAIT_AND_PREFILL = "TTFT (queue + prefill)"
"""What a change of TTFT is called where no server tells its single requests' queueing times."""

ABSENT = "–"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def shortened(name: str, most: int) -> str:
    """A name of at most so many characters: what is left out is in the middle, since names differ at their ends."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with some significant digits, thousands separated."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


ROUNDING_S = 1e-9
"""Times below a nanosecond are rests of rounding."""


def seconds(value_s: float | None) -> str:
    """A time in the unit that suits it."""
    if value_s is None:
        return ABSENT
    if abs(value_s) < ROUNDING_S:
        return "0 ms"
    if abs(value_s) < 0.001:
        return f"{value_s * 1e6:.3g} µs"
    if abs(value_s) < 0.9995:
        return f"{value_s * 1e3:.3g} ms"
    return f"{value_s:.3g} s" if abs(value_s) < 999.5 else f"{value_s:,.0f} s"


def unit_for(value_s: float | None) -> tuple[str, float]:
    """The unit that suits a time, and what to multiply seconds with."""
    if value_s is None or value_s >= 0.9995:
        return "s", 1.0
    return ("ms", 1e3) if value_s >= 0.001 else ("µs", 1e6)


def interval(value: Estimate) -> str:
    """``low to high``; a side that the data do not bound stays open."""
    low = "" if value.low is None else number(value.low)
    high = "" if value.high is None else number(value.high)
    return f"{low} to {high}" if low and high else f"over {low}" if low else f"up to {high}" if high else ""


def bounds(value: Estimate) -> str:
    """``low to high``; ``low or more`` and ``up to high`` where the data bound a figure on one side only."""
    if value.high is None:
        return "" if value.low is None else f"{number(value.low)} or more"
    return f"up to {number(value.high)}" if value.low is None else interval(value)


def between(value: Estimate | None, text: Callable[[float], str]) -> str:
    """An interval in words: ``3.1 to 4.2``; ``over 3.1`` and ``up to 4.2`` where the data bound it on one side only."""
    if value is None or (value.low is None and value.high is None):
        return ""
    if value.high is None:
        return f"over {text(value.low)}" if value.low is not None else ""
    return f"up to {text(value.high)}" if value.low is None else f"{text(value.low)} to {text(value.high)}"


def share(value: float | None, digits: int = 1) -> str:
    """A share in per cent."""
    return ABSENT if value is None else f"{value * 100:.{digits}f} %"


def signed_share(value: float | None, digits: int = 1) -> str:
    """A relative change in per cent, with its sign."""
    if value is None:
        return ABSENT
    text = f"{value * 100:+.{digits}f} %"
    return text.replace("-", "").replace("+", "") if float(text[:-2]) == 0 else text


def share_range(value: Estimate | None) -> str:
    """A share's interval: ``18.3 to 25.1 %``."""
    if value is None or value.low is None or value.high is None:
        return ""
    return f"{value.low * 100:.1f} to {value.high * 100:.1f} %"


def change_range(value: Estimate | None) -> str:
    """A relative change's interval: ``-26.3 to -19.2 %``."""
    if value is None or value.low is None or value.high is None:
        return ""
    return f"{_signed(value.low * 100)} to {_signed(value.high * 100)} %"


def _signed(value: float) -> str:
    return f"{value:+.1f}" if round(value, 1) else "0.0"


def change_text(value: Estimate, unit: str = "relative") -> str:
    """``-14.2 % (95 %: -16.0 % to -12.1 %)``, or in percentage points for ``points``."""
    form = points if unit == "points" else signed_share
    text = form(value.estimate)
    if value.low is None or value.high is None:
        return text
    return f"{text} ({level_of(value)}: {form(value.low)} to {form(value.high)})"


def p_text(p_value: float | None) -> str:
    """A p-value as it is read."""
    if p_value is None:
        return ABSENT
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def signed_seconds(value_s: float | None) -> str:
    """A change of a time, with its sign."""
    if value_s is None:
        return ABSENT
    return ("+" if value_s > ROUNDING_S else "") + seconds(value_s)


def score(value: float | None) -> str:
    """A mean score."""
    return ABSENT if value is None else f"{value:.3f}"


def points(value: float | None) -> str:
    """A change of a share in percentage points."""
    return ABSENT if value is None else f"{value * 100:+.1f} points" if round(value * 100, 1) else "0.0 points"


def ratio(value: float | None) -> str:
    """A factor: ``×1.23``."""
    return ABSENT if value is None else f"×{value:.2f}" if value < 10 else f"×{value:,.0f}"


def whole(value: float | None) -> str:
    """A count."""
    return ABSENT if value is None else f"{value:,.0f}"


def plural(number_of: int, noun: str) -> str:
    """A count with its noun: ``1 request``, ``2 requests``."""
    return f"{number_of:,} {noun}" + ("" if number_of == 1 else "s")


def size(value_bytes: float | None) -> str:
    """A number of bytes."""
    if value_bytes is None:
        return ABSENT
    for unit in ("B", "KiB", "MiB"):
        if value_bytes < 1024:
            return f"{value_bytes:.4g} {unit}"
        value_bytes /= 1024
    return f"{value_bytes:.4g} GiB"


def level_of(value: Estimate) -> str:
    """``95 %``."""
    return f"{value.level * 100:g} %"


def arrivals(manifest: RunManifest) -> str:
    """How requests were timed: ``trace, speed 2``."""
    rest = [f"{name} {value}" for name, value in manifest.arrivals.items() if name != "kind" and value is not None]
    return ", ".join([str(manifest.arrivals.get("kind", "unknown")), *rest])


def what_ran(manifest: RunManifest) -> list[tuple[str, str]]:
    """Server, method, trace, mode and schedule of a run."""
    server, trace = manifest.server, manifest.trace
    engine = " ".join(part for part in (server.engine, server.engine_version) if part) or "unknown engine"
    mode = {
        "free": "free-running (answers end by themselves)",
        "forced": "forced-length (answers as long as the trace's)",
    }
    method = server.method or "unknown"
    if server.bytes_per_token:
        method += f" ({size(server.bytes_per_token)} a token)"
    rows = [
        ("run", manifest.run_id + (f" · arm {manifest.arm}" if manifest.arm else "")),
        ("server", f"{engine} at {server.url}" + (f" on {server.device}" if server.device else "")),
        ("model", server.model or "unknown"),
        ("method", method),
        ("trace", f"{trace.path} ({trace.format}, {trace.rows_text})"),
        ("mode", mode[manifest.mode]),
        ("arrivals", arrivals(manifest)),
    ]
    if manifest.max_concurrency:
        rows.append(("concurrency", f"at most {manifest.max_concurrency}"))
    rows += [(name, value) for name, value in manifest.metadata.items()]
    if server.prefix_cache:
        rows.append(("prefix cache", server.prefix_cache))
    return rows
