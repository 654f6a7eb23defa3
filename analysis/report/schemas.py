"""JSON schemas (2020-12) of the reports, made from the very types whose values are written."""

from typing import Any, TypedDict, get_type_hints

import msgspec

from kvload.analysis.comparison.answers import ArmQuality
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.model import ArmComparison, Course, Resolution, RunLimit, Verdict
from kvload.analysis.quality.assess import Quality
from kvload.analysis.records.latency import METRICS
from kvload.analysis.report.json_report import PREFIX
from kvload.analysis.run.model import PERCENTILES
from kvload.analysis.run.server_side import ServerSide
from kvload.analysis.run.slo import PercentileLimit
from kvload.analysis.run.streams import Streams
from kvload.analysis.run.trust import Trust
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.sweep.model import Sweep
from kvload.records import GpuUse, RunManifest, TraceInfo

Figure = float | None
"""A figure; None where it was not measured."""


class OutputLength(TypedDict):
    """Answer lengths in tokens."""

    mean: Figure
    median: Figure
    cap_hit_rate: Figure
    finish_reasons: dict[str, int]
    tokens_per_chunk: Figure


class Cause(TypedDict):
    """How many requests did not end well in one way."""

    status: str
    cause: str | None
    requests: int


def _latency_keys() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for metric in (*METRICS, "itl"):
        name = PREFIX.get(metric, metric)
        keys |= {f"{statistic}_{name}_ms": Figure for statistic in ("mean", "median", "std", "max")}
        keys |= {f"p{percent:g}_{name}_ms": Figure for percent in PERCENTILES}
        keys[f"n_{name}"] = int
    return keys


_REPORT: dict[str, Any] = {
    **dict.fromkeys(("run_id", "kvload_version", "mode"), str),
    **dict.fromkeys(("backend", "model_id", "method"), str | None),
    "partial": bool,
    **dict.fromkeys(("num_prompts", "sent", "completed", "failed", "unsent", "lost", "torn"), int),
    **dict.fromkeys(("total_input_tokens", "total_output_tokens", "max_concurrent_requests"), int),
    "max_concurrency": int | None,
    **dict.fromkeys(
        (
            *("request_rate", "request_rate_achieved", "duration", "request_throughput", "request_goodput"),
            *("output_throughput", "total_token_throughput", "steady_request_throughput", "steady_output_throughput"),
            *("slo_attainment", "token_goodput"),
        ),
        Figure,
    ),
    "by_status": dict[str, int],
    "causes": list[Cause],
    "slo": dict[str, float] | None,
    "slo_attainment_by_metric": dict[str, Figure] | None,
    "slo_percentile_limits": list[PercentileLimit] | None,
    "slo_attainment_over_scale": list[tuple[float, Figure]],
    **_latency_keys(),
    "intervals": dict[str, Estimate],
    "itl_by_running": Streams | None,
    "output_length": OutputLength,
    "client": Trust,
    "gpus": list[GpuUse],
    "server": ServerSide,
    "sections": dict[str, dict[str, Estimate | float | None]],
    "notes": list[str],
    "manifest": RunManifest,
}


_quality: Any = TypedDict("Quality", {**get_type_hints(Quality), "arms": dict[str, ArmQuality]})  # type: ignore[misc]
_sweep: dict[str, Any] = {"schema": str, "schema_version": int, **get_type_hints(Sweep)}

_COMPARISON: dict[str, Any] = {
    "trace": TraceInfo,
    "mode": str,
    "repeats": int,
    "level": float,
    "closed_loop": bool,
    "arms": list[ArmSummary],
    "comparisons": list[ArmComparison],
    "verdicts": dict[str, Verdict],
    "resolution": Resolution | None,
    "notes": list[str],
    "course": Course | None,
    "run_limits": list[RunLimit],
    "quality": _quality | None,
    "slo": dict[str, float],
    "figures": dict[str, dict[str, Figure]],
}

_KINDS = {"report": _REPORT, "comparison": _COMPARISON, "sweep": _sweep}
KINDS = tuple(_KINDS)
"""What has a schema here: ``kvload report --json``, ``comparison.json``, and a sweep's ``results.json``."""


def schema_of(kind: str) -> dict[str, Any]:
    """The schema of one of :data:`KINDS`."""
    shape: Any = TypedDict(kind.capitalize(), _KINDS[kind])  # type: ignore[misc]
    made = msgspec.json.schema(shape)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_figures_may_be_missing(made)}


def _figures_may_be_missing(schema: Any) -> Any:
    """What is no finite number is written as null, wherever a number stands."""
    if isinstance(schema, list):
        return [_figures_may_be_missing(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _figures_may_be_missing(value) for name, value in schema.items()}
    return made | {"type": ["number", "null"]} if made.get("type") == "number" else made
