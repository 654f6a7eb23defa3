"""The report of a run as a page."""

from kvload.analysis import words
from kvload.analysis.report import html_page, plots, tables
from kvload.analysis.run.model import Report


def render(report: Report) -> str:
    """The whole page."""
    manifest = report.manifest
    state, verdict = tables.client_verdict(report)
    limits = report.attainment.limits_s if report.attainment else {}
    latencies = tables.latency_table(report)
    body = [
        html_page.facts(words.what_ran(manifest)),
        html_page.section("Requests", html_page.paragraphs(tables.count_lines(report))),
        html_page.section(
            latencies.title,
            html_page.table(latencies),
            html_page.charts(
                html_page.figure(
                    f"{words.METRIC_NAMES[name]}: share of {'gaps' if name == 'itl' else 'requests'} up to",
                    plots.latency_ecdf(name, {"s0": report.metrics[name]}, limits.get(name)),
                )
                for name in ("ttft", "tpot", "itl", "e2e")
                if report.metrics[name].n
            ),
        ),
        html_page.section("Throughput", html_page.facts(tables.throughput_facts(report))),
        html_page.section(
            "Service levels, out of all requests sent",
            html_page.facts(tables.attainment_facts(report)),
            html_page.charts(_attainment_chart(report)),
        ),
        html_page.section("Over time", html_page.charts(_timeline_charts(report))),
        html_page.section(
            "Client",
            html_page.facts(tables.client_facts(report)),
            html_page.paragraphs([verdict], state),
            html_page.bullets(report.trust.reasons),
        ),
        html_page.section(
            "Server",
            html_page.facts(tables.server_facts(report)) or html_page.paragraphs(["its metrics were not scraped"]),
        ),
        html_page.section("Notes", html_page.bullets(report.notes)),
    ]
    return html_page.page(f"kvload report: {manifest.run_id}", body)


def _attainment_chart(report: Report) -> list[str]:
    svg = plots.attainment_over_scale([("s0", report.attainment_over_scale)])
    return [html_page.figure("Attainment if all limits were tighter or looser", svg)] if svg else []


def _timeline_charts(report: Report) -> list[str]:
    timeline = report.timeline
    found = []
    if svg := plots.lines_over_time("requests over time", [("s0", timeline.in_flight), ("s1", timeline.waiting)]):
        note = "in flight, as the client saw it" + (
            "; orange: waiting in the server's queue" if timeline.waiting else ""
        )
        found.append(html_page.figure("Requests in flight", svg, note))
    if svg := plots.lines_over_time("cache usage over time", [("s0", timeline.cache_usage)], "share"):
        found.append(html_page.figure("Cache usage", svg))
    return found
