"""The report of a run on a terminal."""

from rich.console import Console
from rich.text import Text

from kvload.analysis import words
from kvload.analysis.report import tables
from kvload.analysis.report.rich_layout import facts, heading, lines, table
from kvload.analysis.run.model import Report

_STYLES = {"good": "green", "bad": "bold red", "unknown": "yellow"}


def render(report: Report, console: Console) -> None:
    """Print a report."""
    heading(console, "What ran")
    facts(console, words.what_ran(report.manifest))
    heading(console, "Requests")
    lines(console, tables.count_lines(report))
    latencies = tables.latency_table(report)
    heading(console, latencies.title)
    table(console, latencies)
    heading(console, "Throughput")
    facts(console, tables.throughput_facts(report))
    if report.attainment:
        heading(console, "Service levels, out of all requests sent")
        facts(console, tables.attainment_facts(report))
    for section in report.sections:
        heading(console, section.statistic.title)
        facts(console, tables.section_facts(section))
    heading(console, "Client")
    facts(console, tables.client_facts(report))
    state, verdict = tables.client_verdict(report)
    console.print(Text(f"  {verdict}", style=_STYLES[state]))
    lines(console, report.trust.reasons, "  ")
    heading(console, "Server")
    if report.server.samples:
        facts(console, tables.server_facts(report))
        streams = tables.streams_table(report)
        if streams is not None:
            heading(console, streams.title)
            table(console, streams)
    else:
        lines(console, ["its metrics were not scraped"])
    if report.notes:
        heading(console, "Notes")
        lines(console, report.notes, "· ")
