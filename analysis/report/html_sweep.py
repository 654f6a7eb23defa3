"""A sweep as a page."""

from kvload.analysis.report import page, sweep_plot, sweep_tables
from kvload.analysis.sweep.model import Sweep


def render(sweep: Sweep) -> str:
    """The whole page."""
    styles = sweep_plot.styles(sweep)
    return page.render(
        "sweep.html.j2",
        title="How much traffic each method carries",
        identity=sweep_tables.identity(sweep),
        headline=sweep_tables.headline(sweep),
        summary=sweep_tables.summary_table(sweep),
        legend=[
            (f"{curve.arm}: {sweep_tables.capacity_text(sweep, curve)}", styles[curve.arm]) for curve in sweep.curves
        ],
        goodput=sweep_plot.goodput(sweep).render(),
        goodput_note="grey: every request sent meets its limits" if sweep.axis == "rate" else "",
        attainment=sweep_plot.attainment(sweep).render(),
        charts=[(title, chart.render()) for title, chart in sweep_plot.charts(sweep)],
        levels=sweep_tables.levels_table(sweep),
        facts=sweep_tables.facts(sweep),
        notes=sweep_tables.notes(sweep),
    )
