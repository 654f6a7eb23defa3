"""Conditions that fail a run: ``attainment<0.99``, ``inflation.mean>1.05``, ``kivi-4:ttft.p99>1500ms``.

A condition names a figure, an operator and a value: a time has its unit, a share may be in per cent, a rate is per
second unless it says ``/min``, and anything else is a plain number. It fails the run where it is true; a figure that
was not measured fails it as well, since a check that cannot be made must not pass.
"""

import difflib
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from kvload.analysis.comparison import figures
from kvload.analysis.comparison.model import ArmComparison, Comparison
from kvload.analysis.records import latency
from kvload.analysis.run import sections
from kvload.analysis.run.model import PERCENTILES, Report
from kvload.errors import GateFailedError, UsageError
from kvload.units import LIMIT_METRICS, format_duration, parse_duration, parse_rate

_CONDITION = re.compile(
    r"\s*(?:(?P<arm>[^\s<>=!]+):)?(?P<name>[A-Za-z][A-Za-z0-9_.]*)\s*(?P<sign><=|>=|==|!=|<|>)"
    r"\s*(?P<value>[-+.0-9].*?)\s*"
)
_NUMBER = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(%?)")
_TIME = re.compile(r"(?P<metric>[a-z0-9_]+)\.(?:mean|max|p[0-9.]+)")
_RATES = ("goodput", "throughput.requests", "capacity", "capacity.low")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition; ``arm`` is None where it concerns every arm that has the figure; a time's ``value`` is in s."""

    text: str
    arm: str | None
    name: str
    sign: str
    value: float

    def __str__(self) -> str:
        """As it was understood: ``fails if ttft.p99 > 200 ms``."""
        whose = f"{self.arm}: " if self.arm else ""
        return f"fails if {whose}{self.name} {self.sign} {_shown(self.name, self.value)}"


def parse(text: str) -> Gate:
    """Read one ``--fail-if`` condition.

    Raises:
        UsageError: it does not have the form ``[ARM:]NAME SIGN VALUE``, or a time has no unit.
    """
    found = _CONDITION.fullmatch(text)
    if not found:
        raise UsageError(f"'{text}' is not a condition", where="--fail-if", hint="for example attainment<0.99")
    value = _value(found["name"], found["value"], text)
    return Gate(text=text.strip(), arm=found["arm"], name=found["name"], sign=found["sign"], value=value)


def is_time(name: str) -> bool:
    """Whether the figure of that name is a time."""
    statistic, _, figure = name.partition(".")
    if statistic in sections.table():
        known = sections.table()[statistic].figures.get(figure)
        return known is not None and known.unit == "s"
    found = _TIME.fullmatch(name)
    return found is not None and found["metric"] in latency.METRICS


def _value(name: str, value: str, text: str) -> float:
    where = f"--fail-if {text}"
    if is_time(name):
        return parse_duration(value, where=where)
    if name in _RATES and "%" not in value and not value.startswith("-"):
        return parse_rate(value, where=where, may_be_zero=True)
    found = _NUMBER.fullmatch(value)
    if not found:
        hint = f"{name} is a plain number or a share: {name}<0.99 or {name}<99%"
        raise UsageError(f"'{value}' is no number", where=where, hint=hint)
    return float(found[1]) / (100 if found[2] else 1)


def _shown(name: str, value: float) -> str:
    if is_time(name):
        return format_duration(value)
    return f"{value:g}/s" if name in _RATES else f"{value:g}"


def evaluate(gates: Sequence[Gate], values: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The reasons why gates fail; none if all pass.

    Args:
        gates: the conditions.
        values: figures by arm; a single run has one arm named ``run``.

    Raises:
        UsageError: a gate names an arm or a figure that does not exist.
    """
    reasons = []
    for gate in gates:
        arms = [gate.arm] if gate.arm else [arm for arm in values if gate.name in values[arm]]
        if gate.arm and gate.arm not in values:
            raise UsageError(f"there is no arm '{gate.arm}'", where="--fail-if", hint=f"known: {', '.join(values)}")
        if not arms or gate.name not in values[arms[0]]:
            known = sorted({name for found in values.values() for name in found})
            raise UsageError(f"there is no figure '{gate.name}'", where="--fail-if", hint=f"known: {', '.join(known)}")
        for arm in arms:
            where = f" ({arm})" if len(values) > 1 else ""
            figure = values[arm][gate.name]
            if figure is None:
                reasons.append(f"{gate.text}: {gate.name} was not measured{where}")
            elif _SIGNS[gate.sign](figure, gate.value):
                shown = format_duration(float(f"{figure:.6g}")) if is_time(gate.name) else f"{figure:.6g}"
                reasons.append(f"{gate.text}: {gate.name} is {shown}{where}")
    return reasons


def check_names(gates: Sequence[Gate], known: Collection[str], *, arms: Sequence[str], limited: bool | None) -> None:
    """Refuse gates that no outcome could satisfy, before anything is run.

    Args:
        gates: the conditions.
        known: names of the figures there will be, as :func:`run_figures` or :func:`comparison_figures` give them.
        arms: names that a gate may put before its figure.
        limited: whether limits are given, without which there is no attainment; None where that is not known yet.

    Raises:
        UsageError: a gate names an arm or a figure that there will not be.
    """
    for gate in gates:
        where = f"--fail-if {gate.text}"
        if gate.arm is not None and gate.arm not in arms:
            raise UsageError(f"there is no arm '{gate.arm}'", where=where, hint=_meant(gate.arm, arms))
        if gate.name not in known:
            raise UsageError(f"there is no figure '{gate.name}'", where=where, hint=_meant(gate.name, known))
        if limited is False and gate.name.startswith(("attainment", "goodput")):
            raise UsageError(f"there is no {gate.name} without limits", where=where, hint="--slo ttft=500ms,tpot=50ms")


def _meant(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def run_figures() -> frozenset[str]:
    """Names of all figures of a single run."""
    sectioned = (f"{key}.{figure}" for key, statistic in sections.table().items() for figure in statistic.figures)
    plain = ("sent", "completed", "failed", "failed.share", "unsent", "throughput.requests", "throughput.output_tokens")
    return frozenset(
        (*plain, "client_bound", "preemptions", *_attainment_names(), *_latency_names(("max",)), *sectioned)
    )


def comparison_figures() -> frozenset[str]:
    """Names of all figures of an arm in a comparison."""
    inflation = ("inflation.mean", "inflation.median", "inflation.total", "inflation.beyond_floor")
    lengths = ("length.grown", "length.shrunk", "length.capped")
    quality = ("quality", "quality.change", "quality.beyond_floor", "negative.share")
    changes = [f"{name}.change" for name in ("attainment", "goodput", "latency", *figures.LATENCIES)]
    failed = ("failed", "failed.share", "client_bound")
    return frozenset((*inflation, *lengths, *quality, *changes, *failed, *_attainment_names(), *_latency_names()))


def _attainment_names() -> list[str]:
    return ["attainment", "attainment.low", "goodput", *(f"attainment.{metric}" for metric in LIMIT_METRICS)]


def _latency_names(more: Sequence[str] = ()) -> list[str]:
    statistics = ("mean", *more, *(f"p{percent:g}" for percent in PERCENTILES))
    return [f"{metric}.{statistic}" for metric in (*latency.METRICS, "itl") for statistic in statistics]


def check(gates: Sequence[Gate], values: Mapping[str, Mapping[str, float | None]]) -> None:
    """Raise where a gate fails.

    Raises:
        GateFailedError: with all reasons.
        UsageError: a gate names an arm or a figure that does not exist.
    """
    if reasons := evaluate(gates, values):
        raise GateFailedError("; ".join(reasons), where="--fail-if")


def report_values(report: Report) -> dict[str, dict[str, float | None]]:
    """The figures of a single run that gates may name."""
    return {"run": run_values(report)}


def run_values(report: Report) -> dict[str, float | None]:
    """The figures of one run that gates may name: counts, rates, attainment, latencies in seconds."""
    counts, rates, met = report.counts, report.throughput, report.attainment
    values: dict[str, float | None] = {
        "attainment": met.share.estimate if met else None,
        "attainment.low": met.share.low if met else None,
        "goodput": met.goodput_rps if met else None,
        "sent": counts.sent,
        "completed": counts.completed,
        "failed": counts.sent - counts.completed,
        "failed.share": (counts.sent - counts.completed) / counts.sent if counts.sent else None,
        "unsent": counts.unsent + counts.lost,
        "throughput.requests": rates.request_rps,
        "throughput.output_tokens": rates.output_tokens_per_s,
        "client_bound": None if report.trust.client_bound is None else float(report.trust.client_bound),
        "preemptions": report.server.preemptions,
    }
    for name, share in (met.by_metric if met else {}).items():
        values[f"attainment.{name}"] = share.estimate
    for name, metric in report.metrics.items():
        values[f"{name}.mean"] = metric.mean.estimate
        values[f"{name}.max"] = metric.max_s
        for percent, found in metric.percentiles.items():
            values[f"{name}.p{percent:g}"] = found.estimate
    for section in report.sections:
        values |= {f"{section.statistic.key}.{key}": value for key, value in section.estimates().items()}
    return values


def comparison_values(comparison: Comparison) -> dict[str, dict[str, float | None]]:
    """The figures of every arm but baseline and floor that gates may name."""
    arms = {arm.name: arm for arm in comparison.arms}
    values = {}
    for change in comparison.comparisons:
        if change.floor or change.perturbed:
            continue
        arm = arms[change.name]
        values[change.name] = {
            "attainment": arm.attainment.estimate if arm.attainment else None,
            "attainment.low": arm.attainment.low if arm.attainment else None,
            "goodput": arm.goodput_rps,
            "failed": float(arm.sent - arm.answered),
            "failed.share": (arm.sent - arm.answered) / arm.sent if arm.sent else None,
            "client_bound": float(any(run.trust.client_bound for run in arm.runs)),
            **{f"attainment.{name}": share.estimate for name, share in arm.attainment_by_metric.items()},
            **{f"{name}.mean": metric.mean.estimate for name, metric in arm.metrics.items()},
            **{
                f"{name}.p{percent:g}": found.estimate
                for name, metric in arm.metrics.items()
                for percent, found in metric.percentiles.items()
            },
            **_change_values(change),
            **_quality_values(comparison, change.name),
        }
    return values


def _change_values(change: ArmComparison) -> dict[str, float | None]:
    lengths, met = change.lengths, change.slo
    values: dict[str, float | None] = {
        "inflation.mean": lengths.ratio_mean.estimate if lengths else None,
        "inflation.median": lengths.ratio_median.estimate if lengths else None,
        "inflation.total": lengths.ratio_total.estimate if lengths else None,
        "inflation.beyond_floor": _excess(change, "lengths"),
        "length.grown": lengths.grown.estimate if lengths else None,
        "length.shrunk": lengths.shrunk.estimate if lengths else None,
        "length.capped": lengths.capped.estimate if lengths else None,
        "attainment.change": met.difference.estimate if met else None,
        "goodput.change": met.goodput.estimate if met else None,
    }
    values["latency.change"] = _excess(change, "latency")
    values["quality.beyond_floor"] = _excess(change, "quality")
    for name, found in change.latency.items():
        values[f"{name}.change"] = found.relative.estimate
    return values


def _excess(change: ArmComparison, question: str) -> float | None:
    """The excess over the baseline, its A/A run taken into account."""
    return change.effects[question].change.estimate if question in change.effects else None


def _quality_values(comparison: Comparison, arm: str) -> dict[str, float | None]:
    found = comparison.answers.arms[arm] if comparison.answers else None
    values: dict[str, float | None] = {
        "quality": found.overall.arm_mean if found else None,
        "quality.change": found.overall.difference.estimate if found else None,
        "negative.share": None,
    }
    if found and found.negatives:
        first = min(found.negatives, key=lambda count: count.theta)
        values["negative.share"] = first.negative / first.eligible if first.eligible else None
    return values
