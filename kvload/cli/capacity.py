"""``kvload capacity``: the highest request rate at which enough requests meet their limits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvload.cli.options import (
    ArrivalFlags,
    AsJson,
    Burstiness,
    LimitFlags,
    PageFlags,
    Quiet,
    RequestFlags,
    SendingFlags,
    ServerFlags,
    TraceFlags,
    grouped,
)
from kvload.cli.readings import (
    one_trace,
    read_arrivals,
    read_gates,
    read_headers,
    read_page,
    read_run,
    trace_and_limits,
)
from kvload.cli.server_readings import read_address

if TYPE_CHECKING:
    from kvload.analysis.sweep.model import Point, Sweep

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@grouped
def capacity(
    words: Annotated[
        list[str],
        typer.Argument(metavar="TRACE", help="A trace file, or sample:demo; its lengths are used, not its times."),
    ],
    target: Annotated[float, typer.Option(help="Share of requests that must meet all limits.", min=0.01, max=1)] = 0.99,
    start_rate: Annotated[
        float, typer.Option(help="Requests per second of the first attempt.", min=0.001, rich_help_panel="Search")
    ] = 1.0,
    tolerance: Annotated[
        float, typer.Option(help="Stop when the rate is known this well.", min=0.001, rich_help_panel="Search")
    ] = 0.1,
    most: Annotated[int, typer.Option(help="At most so many attempts.", min=1, rich_help_panel="Search")] = 12,
    burstiness: Burstiness = None,
    warm_up: Annotated[
        str,
        typer.Option(
            help="Requests of this time do not count; auto: the longer of 30s and five answers.",
            rich_help_panel="Search",
        ),
    ] = "auto",
    server: ServerFlags = ServerFlags(),
    out: Annotated[Path | None, typer.Option(help="Folder for the attempts' runs.", show_default=False)] = None,
    trace: TraceFlags = TraceFlags(),
    requests: RequestFlags = RequestFlags(),
    sending: SendingFlags = SendingFlags(),
    limits: LimitFlags = LimitFlags(),
    page: PageFlags = PageFlags(),
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the highest request rate at which enough requests meet their limits."""
    from kvload.analysis import gates
    from kvload.cli.replay_display import Display
    from kvload.errors import UsageError
    from kvload.experiment.capacity import CapacityPlan, CapacityWatcher, find
    from kvload.experiment.forecast import Forecast, left_text
    from kvload.experiment.options import ReplayOptions
    from kvload.experiment.replay import Listener, default_out
    from kvload.units import parse_duration
    from kvload.workloads.traces.formats import read_trace
    from kvload.workloads.traces.samples import trace_path

    names, limits_s = trace_and_limits(words, limits)
    conditions = read_gates(limits.fail_if, "capacity", arms=["run"])
    if not limits_s:
        raise UsageError("say which limits count", where="--slo", hint="--slo ttft=500ms,tpot=50ms")
    path = trace_path(one_trace(names, "kvload capacity TRACE --slo ..."))
    part = read_arrivals(trace, ArrivalFlags(), requests.seed)
    shared = ReplayOptions(
        trace=path,
        run=read_run(
            trace, requests, part, sending, limits_s, max_model_len=server.max_model_len, policy=server.policy
        ),
        server=server.server,
        address=read_address(server, insecure=sending.insecure),
        model=server.model,
        headers=read_headers(sending),
        swarm=read_page(page, autostart=True),
    )
    plan = CapacityPlan(
        options=shared,
        rows=sum(1 for _ in read_trace(path, trace.format_name)),
        out=out or default_out(path),
        target=target,
        start_rps=start_rate,
        tolerance=tolerance,
        most=most,
        burstiness=1.0 if burstiness is None else burstiness,
        warm_up_s=None if warm_up == "auto" else parse_duration(warm_up, where="--warm-up"),
    )
    with Display(quiet=quiet) as display:
        display.notice(plan.check())
        for condition in conditions:
            display.notice(str(condition))
        if page.web:
            display.notice(f"the page of each attempt is at http://{page.web_host}:{page.web_port}/kvload/")
        forecast = Forecast([])
        made = 0

        def on_attempt(rate: float, number: int, count: int) -> None:
            forecast.expect([count / rate] * (most - number))
            forecast.begin()
            display.within(lambda: f"attempt {number + 1} of at most {most}, at most {left_text(forecast)}")
            display.notice(
                f"attempt {number + 1} of at most {most}, at most {left_text(forecast)}:"
                f" {rate:.3g} requests/s, {count} requests"
            )

        def on_point(point: "Point") -> None:
            nonlocal made
            forecast.end()
            made += 1
            display.notice(f"  {point.met} of {point.sent} met all limits ({point.warm_up} of the warm-up left out)")

        watcher = CapacityWatcher(on_attempt, on_point, Listener(display.progress, display.notice))
        try:
            found = find(plan, watcher)
        except KeyboardInterrupt:
            display.notice(
                f"interrupted: {made} attempts are kept in {plan.out / 'runs'}, each as kvload report shows it;"
                " a new search begins where it was with --start-rate"
            )
            raise
    _show(found, plan.out, as_json=json_output)
    carried = found.curves[0].capacity
    gates.check(conditions, {"run": {"capacity": carried.estimate, "capacity.low": carried.low}})


def _show(found: "Sweep", folder: Path, *, as_json: bool) -> None:
    import json
    import sys

    from kvload.analysis.report import html_sweep, sweep_json, sweep_plot, sweep_terminal
    from kvload.terminal import console

    as_dict = sweep_json.as_dict(found)
    if as_json:
        print(json.dumps(as_dict, indent=2, ensure_ascii=False))
    else:
        sweep_terminal.render(found, console())
    (folder / "results.json").write_text(json.dumps(as_dict, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sweep_json.write_csv(found, folder / "points.csv")
    (folder / "capacity.svg").write_text(sweep_plot.picture(found), encoding="utf-8")
    (folder / "capacity.html").write_text(html_sweep.render(found), encoding="utf-8")
    print(f"wrote {folder / 'capacity.html'}, capacity.svg, results.json and points.csv", file=sys.stderr)
