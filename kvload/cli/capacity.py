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
    one_trace,
    read_address,
    read_arrivals,
    read_gates,
    read_headers,
    read_page,
    read_run,
    trace_and_limits,
)

if TYPE_CHECKING:
    from kvload.analysis.run.capacity import Attempt, Capacity
    from kvload.experiment.options import ReplayOptions
    from kvload.experiment.replay import Listener

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@grouped
def capacity(
    words: Annotated[
        list[str],
        typer.Argument(metavar="TRACE", help="A trace file, or sample:demo; its lengths are used, not its times."),
    ],
    target: Annotated[float, typer.Option(help="Share of requests that must meet all limits.", min=0.01, max=1)] = 0.99,
    start_rate: Annotated[float, typer.Option(help="Requests per second of the first attempt.", min=0.001)] = 1.0,
    tolerance: Annotated[float, typer.Option(help="Stop when the rate is known this well.", min=0.001)] = 0.1,
    most: Annotated[int, typer.Option(help="At most so many attempts.", min=1)] = 12,
    burstiness: Burstiness = None,
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
    from dataclasses import replace

    from kvload.analysis import gates
    from kvload.analysis.run.capacity import search
    from kvload.cli.replay_display import Display
    from kvload.errors import UsageError
    from kvload.experiment.options import ReplayOptions
    from kvload.experiment.replay import Listener, default_out
    from kvload.workloads.traces.samples import trace_path

    names, limits_s = trace_and_limits(words, limits)
    conditions = read_gates(limits.fail_if)
    if not limits_s:
        raise UsageError("say which limits count", where="--slo", hint="--slo ttft=500ms,tpot=50ms")
    path = trace_path(one_trace(names, "kvload capacity TRACE --slo ..."))
    folder = out or default_out(path)
    part = read_arrivals(trace, ArrivalFlags(), requests.seed)
    shared = ReplayOptions(
        trace=path,
        run=read_run(trace, requests, part, sending, limits_s, max_model_len=server.max_model_len),
        server=server.server,
        address=read_address(server, insecure=sending.insecure),
        model=server.model,
        headers=read_headers(sending.header),
        swarm=read_page(page, autostart=True),
    )
    with Display(quiet=quiet) as display:
        for condition in conditions:
            display.notice(str(condition))
        if page.web:
            display.notice(f"the page of each attempt is at http://{page.web_host}:{page.web_port}/kvload/")

        def attempt(rate_rps: float) -> "Attempt":
            display.notice(f"{rate_rps:.3g} requests a second")
            shape = 1.0 if burstiness is None else burstiness
            due = replace(part, kind="gamma", rate=rate_rps, burstiness=shape)
            run = replace(shared.run, schedule=replace(shared.run.schedule, arrivals=due))
            options = replace(shared, run=run, out=folder / f"rate-{rate_rps:.4g}")
            return _attempt(options, Listener(display.progress, display.notice), rate_rps)

        found = search(attempt, start_rps=start_rate, target=target, tolerance=tolerance, most=most)
    _show(found, as_json=json_output)
    gates.check(conditions, {"run": {"capacity": found.rate_rps.estimate, "capacity.low": found.rate_rps.low}})


def _attempt(options: "ReplayOptions", listener: "Listener", rate_rps: float) -> "Attempt":
    from kvload.analysis.run.capacity import Attempt
    from kvload.analysis.run.summary import summarise
    from kvload.errors import ServerError, UsageError
    from kvload.experiment.replay import replay_once

    run = replay_once(options, listener)
    manifest = run.manifest()
    if manifest.ended == "interrupted":
        raise KeyboardInterrupt
    if manifest.partial:
        raise ServerError(f"the attempt did not come to its end: {manifest.ended}", where=str(run.path))
    reached = summarise(run).attainment
    if reached is None:
        raise UsageError("a capacity needs limits on single requests", where="--slo", hint="ttft=500ms,tpot=50ms")
    listener.on_notice(f"  {reached.met} of {reached.sent} met all limits")
    return Attempt(rate_rps=rate_rps, sent=reached.sent, met=reached.met)


def _show(found: "Capacity", *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    from rich.table import Table

    from kvload.terminal import console as make_console

    table = Table(box=None, header_style="dim")
    for column in ("requests/s", "sent", "met", "attainment"):
        table.add_column(column, justify="right")
    for made in found.attempts:
        share = f"{made.met / made.sent:.1%}" if made.sent else "-"
        table.add_row(f"{made.rate_rps:.3g}", str(made.sent), str(made.met), share)
    console = make_console()
    console.print(table)
    rate = found.rate_rps
    if rate.estimate is None:
        console.print(f"no rate tried meets the target of {found.target:.0%}")
        return
    sure = "no rate surely does" if rate.low is None else f"{rate.low:.3g} surely does"
    lost = "no rate tried surely does not" if rate.high is None else f"{rate.high:.3g} surely does not"
    console.print(
        f"capacity: {rate.estimate:.3g} requests a second meet the target of {found.target:.0%} "
        f"({sure}, {lost}; {rate.level:.0%} {rate.method})"
    )
