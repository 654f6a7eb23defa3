"""The report as JSON, with the keys of ``vllm bench serve`` where it has them (times in milliseconds there).

Keys of ours stand beside them: ``sent``, ``slo_attainment``, ``slo_attainment_by_metric``, ``intervals`` and more.
"""

from typing import Any

from kvload.analysis.report.plain import plain
from kvload.analysis.run.model import Metric, Report

PREFIX = {"e2e": "e2el", "e2e_sched": "e2el_sched"}
"""Names of metrics in the keys, where vllm bench serve calls them otherwise."""


def as_dict(report: Report) -> dict[str, Any]:
    """All figures of a report; missing ones are null."""
    manifest, counts, rates, met = report.manifest, report.counts, report.throughput, report.attainment
    values: dict[str, Any] = {
        "run_id": manifest.run_id,
        "kvload_version": manifest.kvload_version,
        "backend": manifest.server.engine,
        "model_id": manifest.server.model,
        "method": manifest.server.method,
        "mode": manifest.mode,
        "partial": manifest.partial,
        "num_prompts": manifest.planned,
        "request_rate": rates.intended_rps,
        "request_rate_achieved": rates.achieved_rps,
        "max_concurrency": manifest.max_concurrency,
        "duration": rates.duration_s,
        "sent": counts.sent,
        "completed": counts.completed,
        "failed": counts.sent - counts.completed,
        "unsent": counts.unsent,
        "lost": counts.lost,
        "torn": counts.torn,
        "by_status": counts.by_status,
        "causes": [{"status": status, "cause": cause, "requests": n} for status, cause, n in counts.causes],
        "total_input_tokens": rates.total_input_tokens,
        "total_output_tokens": rates.total_output_tokens,
        "request_throughput": rates.request_rps,
        "request_goodput": met.goodput_rps if met else None,
        "output_throughput": rates.output_tokens_per_s,
        "total_token_throughput": rates.total_tokens_per_s,
        "steady_request_throughput": rates.steady_request_rps,
        "steady_output_throughput": rates.steady_output_tokens_per_s,
        "max_concurrent_requests": rates.max_in_flight,
        "slo": met.limits_s if met else None,
        "slo_attainment": met.share.estimate if met else None,
        "slo_attainment_by_metric": {k: v.estimate for k, v in met.by_metric.items()} if met else None,
        "slo_percentile_limits": plain(met.percentiles) if met else None,
        "token_goodput": met.goodput_tokens_per_s if met else None,
    }
    for name, metric in report.metrics.items():
        values |= _metric_keys(PREFIX.get(name, name), metric)
    values["intervals"] = _intervals(report)
    values["itl_by_running"] = plain(report.streams)
    values["output_length"] = {
        "mean": report.lengths.mean.estimate,
        "median": report.lengths.median.estimate,
        "cap_hit_rate": report.lengths.cap_hits.estimate,
        "finish_reasons": {str(reason): n for reason, n in report.lengths.finish_reasons.items()},
        "tokens_per_chunk": report.lengths.tokens_per_chunk,
    }
    values["slo_attainment_over_scale"] = report.attainment_over_scale
    values["client"] = plain(report.trust)
    values["gpus"] = plain(manifest.gpus)
    values["server"] = plain(report.server)
    values["sections"] = {section.statistic.key: dict(section.values) for section in report.sections}
    values["notes"] = report.notes
    values["manifest"] = plain(manifest)
    return {key: plain(value) for key, value in values.items()}


def _metric_keys(name: str, metric: Metric) -> dict[str, float | int | None]:
    keys: dict[str, float | int | None] = {
        f"mean_{name}_ms": _ms(metric.mean.estimate),
        f"median_{name}_ms": _ms(metric.percentiles[50.0].estimate),
        f"std_{name}_ms": _ms(metric.std_s),
        f"max_{name}_ms": _ms(metric.max_s),
        f"n_{name}": metric.n,
    }
    for percent, found in metric.percentiles.items():
        keys[f"p{percent:g}_{name}_ms"] = _ms(found.estimate)
    return keys


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _intervals(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, metric in report.metrics.items():
        prefix = PREFIX.get(name, name)
        found[f"mean_{prefix}_ms"] = plain(metric.mean.scaled(1e3))
        for percent, value in metric.percentiles.items():
            found[f"p{percent:g}_{prefix}_ms"] = plain(value.scaled(1e3))
    if report.attainment:
        found["slo_attainment"] = plain(report.attainment.share)
        for name, share in report.attainment.by_metric.items():
            found[f"slo_attainment_{name}"] = plain(share)
    found["mean_output_tokens"] = plain(report.lengths.mean)
    found["median_output_tokens"] = plain(report.lengths.median)
    found["cap_hit_rate"] = plain(report.lengths.cap_hits)
    return found
