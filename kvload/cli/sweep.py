"""``kvload sweep``: several methods under rising load, and what each carries within the limits."""

from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.launch import LaunchCommand
from kvload.cli.options import (
    ArrivalFlags,
    BesideFlags,
    Burstiness,
    Goodput,
    LaunchFlags,
    Model,
    RepeatedSendingFlags,
    RequestFlags,
    Slo,
    TraceFlags,
    VerifyEach,
    grouped,
)
from kvload.cli.readings import read_arrivals, read_headers, read_limits, read_run
from kvload.cli.server_readings import read_beside, read_launch

app = typer.Typer(add_completion=False)

EXAMPLES = """Examples:

  kvload sweep trace.jsonl --engine vllm --model M --method none --method fp8-e4m3 --slo ttft=500ms,tpot=50ms
  kvload sweep trace.jsonl --arm a=http://127.0.0.1:8000 --arm b=http://127.0.0.1:8001 --rates 1,2,4,8 --slo ttft=1s
  kvload sweep trace.jsonl --method none --method int8 --concurrency 1,8,64 --slo tpot=50ms
  kvload sweep runs/20260101-120000-sweep --slo ttft=1s      (a finished one, judged by other limits)
"""


@app.command(cls=LaunchCommand, options_metavar="[OPTIONS] [-- ENGINE ARGS]", epilog=EXAMPLES)
@grouped
def sweep(
    ctx: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="TRACE | SWEEP", help="A trace file, or sample:demo; or a sweep's folder, to show again."
        ),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="A method to launch; may be repeated.")] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="NAME=http://HOST:PORT, a server that runs already; may be repeated.")
    ] = None,
    slo: Slo = "",
    goodput: Goodput = "",
    rates: Annotated[
        str | None, typer.Option(help="Requests a second: 1,2,4,8; auto searches for what each method carries.")
    ] = None,
    concurrency: Annotated[str | None, typer.Option(help="Requests in flight instead (closed loop): 1,8,64.")] = None,
    target: Annotated[float, typer.Option(help="Share of requests that must meet all limits.", min=0.01, max=1)] = 0.9,
    repeats: Annotated[int, typer.Option(help="How often each method is walked, in rotated order.", min=1)] = 1,
    duration: Annotated[
        str, typer.Option(help="Keep each rate up for so long, where the trace allows.", metavar="TIME")
    ] = "60s",
    warm_up: Annotated[
        str,
        typer.Option(
            help="Requests of each level's first time do not count; auto: a quarter of --duration, 30s at most.",
            rich_help_panel="Search",
        ),
    ] = "auto",
    start_rate: Annotated[float, typer.Option(help="Where auto begins.", min=0.001, rich_help_panel="Search")] = 1.0,
    tolerance: Annotated[
        float, typer.Option(help="auto stops when the rate is known this well.", min=0.001, rich_help_panel="Search")
    ] = 0.1,
    most: Annotated[
        int, typer.Option(help="auto tries at most so many rates of a method.", min=1, rich_help_panel="Search")
    ] = 12,
    baseline: Annotated[
        str | None,
        typer.Option(help="The arm to compare with; none or auto, else the first.", rich_help_panel="Comparison"),
    ] = None,
    model: Model = None,
    launch: LaunchFlags = LaunchFlags(),
    beside: BesideFlags = BesideFlags(),
    verify: VerifyEach = None,
    trace: TraceFlags = TraceFlags(),
    burstiness: Burstiness = None,
    requests: RequestFlags = RequestFlags(),
    sending: RepeatedSendingFlags = RepeatedSendingFlags(),
    gpu_hour: Annotated[float | None, typer.Option(help="Price of a GPU-hour, for the cost of tokens.", min=0)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep.", show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the sweep in this folder.", show_default=False)] = (
        None
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and an estimate of its time.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Raise the load on several methods and show what each carries within the limits."""
    from dataclasses import replace

    import msgspec

    from kvload.cli import sweep_runs
    from kvload.errors import UsageError
    from kvload.experiment import sweep_plan as sweeps

    limits = read_limits(slo, goodput)
    headers = read_headers(sending)
    show = sweep_runs.Shown(as_json=json_output, limits=limits or None, price_per_gpu_hour=gpu_hour)
    if resume is not None:
        if what or method or arm:
            raise UsageError("the folder says what is swept", where="--resume", hint="give nothing besides it")
        plan = sweeps.load(resume)
        plan = sweep_runs.replaced(plan, beside, launch.gpus)
        if verify is not None:
            plan = msgspec.structs.replace(plan, launch=replace(plan.launch, verify=verify))
        return sweep_runs.make(plan, resume, headers, show, dry_run=dry_run, is_new=False)
    if what is None:
        raise UsageError("a trace is required", where="TRACE", hint="kvload sweep TRACE --method ... --slo ...")
    if (Path(what) / sweeps.PLAN_NAME).is_file():
        return sweep_runs.show(sweeps.load(Path(what)), Path(what), show)
    axis, levels = sweep_runs.parse_loads(rates, concurrency)
    request = read_launch(launch, model, ctx.meta.get("engine_args", ()), compared=method or [])
    request, spread, per_arm = read_beside(beside, replace(request, verify=verify is not False))
    plan = sweep_runs.plan_of(
        what,
        methods=method or [],
        arms=arm or [],
        baseline=baseline,
        axis=axis,
        levels=levels,
        search={"start": start_rate, "tolerance": tolerance, "most": most},
        repeats=repeats,
        target=target,
        duration=duration,
        warm_up=warm_up,
        burstiness=1.0 if burstiness is None else burstiness,
        launch=request,
        run=read_run(trace, requests, read_arrivals(trace, ArrivalFlags(), requests.seed), sending, limits),
        gpus=sweep_runs.gpus_of_a_server(method or [], request, beside.per_arm, per_arm),
        spread=spread,
        place=beside.place,
        place_address=beside.address,
        price_per_gpu_hour=gpu_hour,
    )
    return sweep_runs.make(plan, out, headers, show, dry_run=dry_run, is_new=True)
