"""``kvload capacity``: the highest request rate at which enough requests meet their limits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvload.cli.replay import MODE_HELP, Mode, TooLong

if TYPE_CHECKING:
    from kvload.analysis.run.capacity import Attempt, Capacity

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def capacity(
    trace: Annotated[str, typer.Argument(help="A trace file, or sample:demo; its lengths are used, not its times.")],
    slo: Annotated[str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms,e2e=20s.")],
    server: Annotated[str | None, typer.Option(help="A launched server's name; the only one if left out.")] = None,
    url: Annotated[str | None, typer.Option(help="Any OpenAI-compatible server instead: http://HOST:PORT.")] = None,
    target: Annotated[float, typer.Option(help="Share of requests that must meet all limits.", min=0.01, max=1)] = 0.99,
    start_rate: Annotated[float, typer.Option(help="Requests per second of the first attempt.", min=0.001)] = 1.0,
    tolerance: Annotated[float, typer.Option(help="Stop when the rate is known this well.", min=0.001)] = 0.1,
    most: Annotated[int, typer.Option(help="At most so many attempts.", min=1)] = 12,
    limit: Annotated[int | None, typer.Option(help="At most so many requests in an attempt.", min=1)] = None,
    mode: Annotated[Mode, typer.Option(help=MODE_HELP)] = Mode.AUTO,
    max_tokens: Annotated[int | None, typer.Option(help="Cap of answers the trace has none for.", min=1)] = None,
    too_long: Annotated[TooLong, typer.Option(help="What to do about requests over the server's limit.")] = (
        TooLong.ERROR
    ),
    burstiness: Annotated[float, typer.Option(help="Shape of gamma gaps: 1 is Poisson.", min=0.001)] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes that send.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the attempts' runs.", show_default=False)] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find the highest request rate at which enough requests meet their limits."""
    from kvload.address import Address
    from kvload.analysis.run.capacity import search
    from kvload.cli.options import read_limits
    from kvload.cli.replay_display import Display
    from kvload.experiment.replay import Listener, ReplayOptions, default_out
    from kvload.workloads.schedule.arrivals import ArrivalSpec
    from kvload.workloads.traces.samples import trace_path

    limits = read_limits(slo)
    path = trace_path(trace)
    address = None if url is None else Address.parse(url)
    folder = out or default_out(path)
    with Display() as display:

        def attempt(rate_rps: float) -> "Attempt":
            display.notice(f"{rate_rps:.3g} requests a second")
            options = ReplayOptions(
                trace=path,
                server=server,
                address=address,
                arrivals=ArrivalSpec(kind="gamma", rate=rate_rps, burstiness=burstiness, seed=seed),
                slo=limits,
                seed=seed,
                mode=mode.value,
                limit=limit,
                default_max_tokens=max_tokens,
                too_long=too_long.value,
                workers=workers,
                out=folder / f"rate-{rate_rps:.4g}",
            )
            return _attempt(options, Listener(display.progress, display.notice), rate_rps)

        found = search(attempt, start_rps=start_rate, target=target, tolerance=tolerance, most=most)
    _show(found, as_json=json_output)


def _attempt(options: Any, listener: Any, rate_rps: float) -> "Attempt":
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
