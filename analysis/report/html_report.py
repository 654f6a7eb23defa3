"""The report of a run as a page."""

from datetime import datetime

from kvload.analysis import words
from kvload.analysis.report import page, plots, tables
from kvload.analysis.report.page import Figure, figures
from kvload.analysis.run.model import Report


def render(report: Report) -> str:
    """The whole page."""
    state, verdict = tables.client_verdict(report)
    server = report.manifest.server
    return page.render(
        "report.html.j2",
        title=f"{server.method or 'a server'} under {report.manifest.trace.path}",
        identity=identity(report),
        lead=lead(report),
        state=state,
        verdict=verdict,
        counts=tables.count_lines(report),
        failures=tables.failure_table(report.manifest.failures),
        latency=tables.latency_table(report),
        ecdfs=_ecdfs(report),
        attainment=tables.attainment_facts(report),
        scales=_scales(report),
        over_time=_over_time(report),
        by_prompt=_by_prompt(report),
        throughput=tables.throughput_facts(report),
        sections=[(section.statistic.title, tables.section_facts(section)) for section in report.sections],
        client=tables.client_facts(report),
        reasons=report.trust.reasons,
        server=tables.server_facts(report),
        what_ran=words.what_ran(report.manifest),
        notes=report.notes,
    )


def identity(report: Report) -> str:
    """Model, engine, device, trace, mode, date in one line."""
    manifest = report.manifest
    server = manifest.server
    engine = " ".join(part for part in (server.engine, server.engine_version) if part) or "unknown engine"
    when = ""
    if manifest.started_at is not None:
        when = f"{datetime.fromtimestamp(manifest.started_at).astimezone():%Y-%m-%d %H:%M}"
    parts = [
        server.model or "unknown model",
        engine,
        f"method {server.method or 'unknown'}",
        server.device or "",
        f"{manifest.trace.path} ({manifest.trace.used:,} requests)",
        {"free": "free-running", "forced": "forced lengths"}.get(manifest.mode, manifest.mode),
        when,
    ]
    return " · ".join(part for part in parts if part)


def lead(report: Report) -> list[str]:
    """The run in a sentence or two."""
    ttft, tpot = report.metrics["ttft"].percentiles, report.metrics["tpot"].percentiles
    said = [
        f"TTFT p50 {words.seconds(ttft[50.0].estimate)}, p99 {words.seconds(ttft[99.0].estimate)}; "
        f"TPOT p50 {words.seconds(tpot[50.0].estimate)}, p99 {words.seconds(tpot[99.0].estimate)}; "
        f"{words.number(report.throughput.output_tokens_per_s)} output tokens/s"
    ]
    met = report.attainment
    if met is not None:
        limits = ", ".join(f"{words.METRIC_NAMES[name]} {words.seconds(value)}" for name, value in met.limits_s.items())
        if limits:
            share, good = words.share(met.share.estimate), words.number(met.goodput_rps)
            said.insert(0, f"{share} of the requests met {limits}: goodput {good} requests/s")
    return said


def _ecdfs(report: Report) -> list[Figure]:
    limits = report.attainment.limits_s if report.attainment else {}
    return figures(
        (
            f"{words.METRIC_NAMES[name]}: share of {'gaps' if name == 'itl' else 'requests'} within",
            plots.latency_ecdf(name, {"s0": report.metrics[name]}, limits.get(name), {}),
            "",
        )
        for name in ("ttft", "tpot", "itl", "e2e")
        if report.metrics[name].n
    )


def _scales(report: Report) -> list[Figure]:
    svg = plots.attainment_over_scale([("s0", report.attainment_over_scale)])
    return figures([("Attainment if all limits were tighter or looser", svg, "")])


def _over_time(report: Report) -> list[Figure]:
    timeline, series = report.timeline, report.series
    limits = report.attainment.limits_s if report.attainment else {}
    window = "" if series.window_s is None else f"windows of {words.seconds(series.window_s)}; solid p50, dashed p90"

    def latency(metric: str, middle: page.Points, high: page.Points) -> tuple[str, str, str]:
        name = words.METRIC_NAMES[metric]
        lines = [("s0", middle), ("thin s0", high)]
        svg = plots.lines_over_time(
            f"{name} over time", lines, "seconds", names={"s0": "p50", "thin s0": "p90"}, limit=limits.get(metric)
        )
        return f"{name}, by when a request was sent", svg, window

    waiting = "; dashed: waiting in the server's queue" if timeline.waiting else ""
    return figures(
        [
            latency("ttft", series.ttft_p50_s, series.ttft_p90_s),
            latency("tpot", series.tpot_p50_s, series.tpot_p90_s),
            (
                "Output tokens a second",
                plots.lines_over_time("output over time", [("s0", series.output_tokens_per_s)]),
                "",
            ),
            (
                "Requests in flight",
                plots.lines_over_time(
                    "requests over time",
                    [("s0", timeline.in_flight), ("thin floor", timeline.waiting)],
                    names={"s0": "in flight", "thin floor": "waiting"},
                ),
                f"in flight, as the client saw it{waiting}",
            ),
            ("Cache usage", plots.lines_over_time("cache usage", [("s0", timeline.cache_usage)], "share"), ""),
            ("Gap between tokens by running requests", _by_running(report), _by_running_caption(report)),
        ]
    )


def _by_running(report: Report) -> str:
    found = report.streams
    return plots.gaps_by_running(
        [(round((b.low * b.high) ** 0.5), b.p50_s, b.p90_s) for b in found.bands], found.covered
    )


def _by_running_caption(report: Report) -> str:
    covered = report.streams.covered
    graphs = "" if covered is None else f"; CUDA graphs cover up to {covered}"
    return f"solid p50, dashed p90; running as the server's gauge said last{graphs}"


def _by_prompt(report: Report) -> list[Figure]:
    limit = report.attainment.limits_s.get("ttft") if report.attainment else None
    return figures([("TTFT, a dot a request", plots.prompt_scatter(report.series.ttft_by_prompt, "s0", limit), "")])
