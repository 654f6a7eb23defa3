"""``kvload replay``: replay a trace against a server and report what happened."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kvload.cli.options import (
    ArrivalFlags,
    AsJson,
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
    read_share,
    trace_and_limits,
)
from kvload.cli.server_readings import read_address

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ELSEWHERE = "Workers on other machines"


@app.command()
@grouped
def replay(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="TRACE", help="A trace file, or sample:demo.", show_default=False)
    ] = None,
    server: ServerFlags = ServerFlags(),
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/TIME-TRACE if left out.")] = None,
    trace: TraceFlags = TraceFlags(),
    arrivals: ArrivalFlags = ArrivalFlags(),
    requests: RequestFlags = RequestFlags(),
    sending: SendingFlags = SendingFlags(),
    limits: LimitFlags = LimitFlags(),
    page: PageFlags = PageFlags(),
    master: Annotated[
        bool, typer.Option("--master", help="Wait for workers on other machines.", rich_help_panel=ELSEWHERE)
    ] = False,
    worker: Annotated[
        bool, typer.Option("--worker", help="Be a worker of a master elsewhere (no TRACE).", rich_help_panel=ELSEWHERE)
    ] = False,
    master_host: Annotated[
        str, typer.Option(help="Where the master is, or listens.", rich_help_panel=ELSEWHERE)
    ] = "127.0.0.1",
    master_port: Annotated[
        int, typer.Option(help="The master's port.", min=1, max=65535, rich_help_panel=ELSEWHERE)
    ] = 5557,
    expect_workers: Annotated[
        int, typer.Option(help="Workers elsewhere to wait for.", min=0, rich_help_panel=ELSEWHERE)
    ] = 0,
    token: Annotated[
        str | None,
        typer.Option(
            help="What master and workers prove to each other; KVLOAD_WORKER_TOKEN if left out.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = None,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Replay a trace against a server and report what happened."""
    from dataclasses import replace

    from kvload.analysis import gates
    from kvload.cli.replay_display import Display
    from kvload.errors import ExitStatus, UsageError
    from kvload.experiment.ending import error_of
    from kvload.experiment.options import ReplayOptions
    from kvload.experiment.replay import Listener, replay_once
    from kvload.workloads.traces.samples import trace_path

    headers = read_headers(sending)
    if worker:
        from kvload.workloads.run.headers import request_headers
        from kvload.workloads.swarm.remote import run_worker

        where = f"{master_host}:{master_port}"
        print(f"waiting for work from the master at {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        return run_worker(master_host, master_port, request_headers(headers), _run_token(token))
    allowed = read_share(limits.allow_failures, "--allow-failures")
    names, limits_s = trace_and_limits(words or [], limits)
    conditions = read_gates(limits.fail_if, "run", arms=["run"], limited=bool(limits_s))
    if master and not expect_workers:
        raise UsageError("say how many workers elsewhere to wait for", where="--master", hint="--expect-workers N")
    swarm = read_page(page)
    if master:
        swarm = replace(
            swarm,
            master_host=master_host,
            master_port=master_port,
            remote_workers=expect_workers,
            token=_run_token(token),
        )
    due = read_arrivals(trace, arrivals, requests.seed)
    options = ReplayOptions(
        trace=trace_path(one_trace(names, "kvload replay TRACE")),
        run=read_run(
            trace,
            requests,
            due,
            sending,
            limits_s,
            concurrency=arrivals.concurrency,
            max_model_len=server.max_model_len,
            policy=server.policy,
        ),
        server=server.server,
        address=read_address(server, insecure=sending.insecure),
        model=server.model,
        headers=headers,
        swarm=swarm,
        out=out,
    )
    reports: list[Any] = []

    def report(run: Any) -> None:
        display.close()
        if run.manifest().started_at is not None:
            reports.append(_report(run, as_json=json_output))

    with Display(quiet=quiet) as display:
        for condition in conditions:
            display.notice(str(condition))
        if page.web:
            display.notice("the page comes as soon as the server has been tried out")
        made = replay_once(options, Listener(display.progress, display.notice, report))
        manifest = made.manifest()
        display.notice(f"run folder: {made.path}; its page: kvload report {made.path} --html {made.path}/report.html")
    if manifest.ended == "interrupted":
        return ExitStatus.INTERRUPTED
    if (error := error_of(manifest, allowed=allowed)) is not None:
        raise error
    for found in reports:
        gates.check(conditions, gates.report_values(found))
    return ExitStatus.OK


def _run_token(given: str | None) -> str:
    """The token of a run with workers elsewhere: the one given, else the environment's; empty where there is none."""
    import os

    from kvload.workloads.run.headers import TOKEN_VARIABLE

    return given or os.environ.get(TOKEN_VARIABLE, "")


def _report(run: Any, *, as_json: bool) -> Any:
    import json

    from kvload.analysis.report import json_report, terminal
    from kvload.analysis.run.summary import summarise
    from kvload.terminal import console

    report = summarise(run)
    if as_json:
        json.dump(json_report.as_dict(report), sys.stdout, indent=2, ensure_ascii=False)
        print(flush=True)
    else:
        terminal.render(report, console())
    return report
