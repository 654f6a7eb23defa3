"""``kvload compare``: one trace under several methods, compared request by request."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.launch import LaunchCommand
from kvload.cli.options import (
    ArrivalFlags,
    AsJson,
    BesideFlags,
    LaunchFlags,
    LimitFlags,
    Model,
    PageFlags,
    Quiet,
    RepeatedSendingFlags,
    RequestFlags,
    TraceFlags,
    VerifyEach,
    grouped,
)
from kvload.cli.readings import (
    one_trace,
    read_arm_keys,
    read_arrivals,
    read_gates,
    read_headers,
    read_page,
    read_run,
    trace_and_limits,
)
from kvload.cli.server_readings import read_beside, read_launch


class FloorChoice(StrEnum):
    """How the baseline is run beside the first time."""

    AGAIN = "again"
    PERTURB = "perturb"
    NONE = "none"


app = typer.Typer(add_completion=False)

COMPARISON = "Comparison"


@app.command(cls=LaunchCommand, options_metavar="[OPTIONS] [-- ENGINE ARGS]")
@grouped
def compare(
    ctx: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="TRACE | RUN RUN ...", help="A trace to replay, or run folders that are there already."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method to launch; may be repeated. One alone measures the noise.")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="NAME=http://HOST:PORT, a server that runs already; may be repeated.")
    ] = None,
    arm_key: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VARIABLE: the environment variable with the key of one arm's server.", rich_help_panel=COMPARISON
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The arm to compare with; none or auto, else the first.", rich_help_panel=COMPARISON),
    ] = None,
    floor: Annotated[
        FloorChoice,
        typer.Option(
            help="Run the baseline again, to see how much equal arms differ; perturb: in another dtype too.",
            rich_help_panel=COMPARISON,
        ),
    ] = FloorChoice.AGAIN,
    no_floor: Annotated[
        bool, typer.Option("--no-floor", help="Run the baseline once: --floor none.", rich_help_panel=COMPARISON)
    ] = False,
    floor_run: Annotated[
        Path | None,
        typer.Option(
            help="With run folders: the baseline's second run.", show_default=False, rich_help_panel=COMPARISON
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often each arm is run, in rotated order.", min=1)] = 3,
    model: Model = None,
    launch: LaunchFlags = LaunchFlags(),
    beside: BesideFlags = BesideFlags(),
    alone: Annotated[
        bool,
        typer.Option(
            "--alone/--no-alone",
            help="Side by side: run the baseline once more alone, to see whether arms slow each other down.",
            rich_help_panel="Side by side",
        ),
    ] = True,
    verify: VerifyEach = None,
    trace: TraceFlags = TraceFlags(),
    arrivals: ArrivalFlags = ArrivalFlags(),
    requests: RequestFlags = RequestFlags(),
    sending: RepeatedSendingFlags = RepeatedSendingFlags(),
    limits: LimitFlags = LimitFlags(),
    page: PageFlags = PageFlags(),
    out: Annotated[Path | None, typer.Option(help="Folder of the experiment.", show_default=False)] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the experiment in this folder.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and an estimate of its time.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Print all that the first screen rests on.")] = False,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Replay one trace under several methods and compare request by request."""
    from dataclasses import replace

    import msgspec

    from kvload.cli.compare_runs import Outcome, make_runs, replaced, show, show_experiment
    from kvload.errors import UsageError
    from kvload.experiment.comparison import default_folder, existing_arms, new_plan
    from kvload.experiment.plan import PLAN_NAME, arm_urls, load
    from kvload.workloads.traces.samples import trace_path

    paths, limits_s = trace_and_limits(what or [], limits)
    headers = read_headers(sending)
    conditions = read_gates(limits.fail_if, "comparison")
    outcome = Outcome(conditions=conditions, as_json=json_output, limits=limits_s, details=details)
    swarm = read_page(page, autostart=True)
    if paths and all(Path(path).is_dir() for path in paths) and resume is None:
        if method or arm:
            raise UsageError(
                f"'{paths[0]}' is a folder, and run folders are compared as they are",
                where="--method, --arm",
                hint="give a trace file, or leave --method and --arm out",
            )
        folders = [Path(path) for path in paths]
        if len(folders) == 1 and (folders[0] / PLAN_NAME).is_file():
            show_experiment(load(folders[0]), folders[0], outcome)
        else:
            show(existing_arms(folders, baseline, floor_run), out, outcome)
        return
    if resume is not None:
        if paths or method or arm:
            raise UsageError("the folder says what is compared", where="--resume", hint="give nothing besides it")
        plan, folder = load(resume), resume
        plan = replaced(plan, beside, launch.gpus)
        if verify is not None:
            plan = msgspec.structs.replace(plan, launch=replace(plan.launch, verify=verify))
    else:
        path = trace_path(one_trace(paths, "kvload compare TRACE --method ..."))
        due = read_arrivals(trace, arrivals, requests.seed)
        request = read_launch(launch, model, ctx.meta.get("engine_args", ()), compared=method or [])
        request, gpus, per_arm = read_beside(beside, replace(request, verify=verify is not False))
        if beside.per_arm is not None and launch.gpus is None and beside.place == "local":
            raise UsageError(
                "GPUs are shared out among arms where they are named", where="--per-arm", hint="--gpus all"
            )
        plan = new_plan(
            path,
            methods=method or [],
            urls=arm_urls(arm or []),
            baseline=baseline,
            floor="none" if no_floor else floor.value,
            repeats=repeats,
            launch=request,
            gpus=gpus,
            per_arm=per_arm,
            alone=alone and not beside.serial,
            place=beside.place,
            place_address=beside.address,
            run=read_run(
                trace,
                requests,
                due,
                sending,
                limits_s,
                concurrency=arrivals.concurrency,
                max_model_len=launch.max_model_len,
            ),
        )
        folder = out or default_folder()
    judged = [each.name for each in plan.arms if not (each.floor or each.perturbed or each.baseline)]
    read_gates(limits.fail_if, "comparison", arms=judged, limited=bool(limits_s or plan.run.slo))
    make_runs(
        plan,
        folder,
        outcome,
        is_new=resume is None,
        headers=headers,
        arm_headers=read_arm_keys(arm_key, [each.name for each in plan.arms]),
        swarm=swarm,
        dry_run=dry_run,
        quiet=quiet,
    )
