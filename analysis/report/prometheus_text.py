"""A report in the text format that Prometheus' node exporter picks up from a file (exposition format 0.0.4)."""

from kvload.analysis.run.model import Report


def render(report: Report) -> str:
    """Gauges of one run, labelled with its model, engine, method and arm; what was not measured is left out."""
    server = report.manifest.server
    labels = {
        "model": server.model,
        "engine": server.engine,
        "method": server.method,
        "arm": report.manifest.arm,
        **report.manifest.metadata,
    }
    shared = [f'{_name(name)}="{_escape(value)}"' for name, value in labels.items() if value is not None]
    lines: list[str] = []

    def gauge(name: str, help_text: str, values: list[tuple[list[str], float | None]]) -> None:
        known = [(extra, value) for extra, value in values if value is not None]
        if not known:
            return
        lines.append(f"# HELP kvload_{name} {help_text}")
        lines.append(f"# TYPE kvload_{name} gauge")
        lines.extend(f"kvload_{name}{{{','.join([*shared, *extra])}}} {value!r}" for extra, value in known)

    for metric in ("ttft", "tpot", "itl", "e2e"):
        found = report.metrics[metric].percentiles
        gauge(
            f"{metric}_seconds",
            f"{metric.upper()} of answered requests, by quantile.",
            [([f'quantile="{percent / 100:g}"'], value.estimate) for percent, value in found.items()],
        )
    met = report.attainment
    ends = [([f'status="{status}"'], float(number)) for status, number in report.counts.by_status.items()]
    gauge("requests", "Requests by how they ended.", [*ends])
    gauge("attainment_ratio", "Share of sent requests within all limits.", [([], met.share.estimate if met else None)])
    gauge("goodput_requests_per_second", "Requests within all limits.", [([], met.goodput_rps if met else None)])
    gauge("output_tokens_per_second", "Tokens of answers.", [([], report.throughput.output_tokens_per_s)])
    energy = [gpu.energy_j for gpu in report.manifest.gpus if gpu.energy_j is not None]
    gauge("gpu_energy_joules", "Energy of the GPUs during the run.", [([], sum(energy) if energy else None)])
    usage = report.server.cache_usage
    gauge("cache_usage_ratio", "Greatest use of the KV cache.", [([], usage.max if usage else None)])
    gauge("run_start_timestamp_seconds", "When the run began.", [([], report.manifest.started_at)])
    return "\n".join(lines) + "\n"


def _name(text: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in text)
    return kept if kept[:1].isalpha() or kept[:1] == "_" else f"_{kept}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
