"""``kvload replay``: replay a trace against a server and report what happened."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kvload.cli.traces import BlockTokens, TimeUnit

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Mode(StrEnum):
    """Values of ``--mode``."""

    AUTO = "auto"
    FREE = "free"
    FORCED = "forced"


MODE_HELP = "free: answers end by themselves; forced: lengths as recorded; auto: forced if the trace has no texts."


class TooLong(StrEnum):
    """Values of ``--too-long``."""

    ERROR = "error"
    DROP = "drop"
    CAP = "cap"
    SCALE = "scale"


@app.command()
def replay(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="TRACE", help="A trace file, or sample:demo.", show_default=False)
    ] = None,
    server: Annotated[str | None, typer.Option(help="A launched server's name; the only one if left out.")] = None,
    url: Annotated[str | None, typer.Option(help="Any OpenAI-compatible server instead: http://HOST:PORT.")] = None,
    slo: Annotated[str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms,e2e=20s.")] = "",
    goodput: Annotated[str, typer.Option(help="The same as vLLM writes it, in ms: ttft:200 tpot:50.")] = "",
    mode: Annotated[Mode, typer.Option(help=MODE_HELP)] = Mode.AUTO,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/TIME-TRACE if left out.")] = None,
    format_name: Annotated[str | None, typer.Option("--format", help="The trace's format, if not to be guessed.")] = (
        None
    ),
    sort: Annotated[bool, typer.Option("--sort", help="Allow arrivals out of order.")] = False,
    time_unit: TimeUnit = None,
    block_tokens: BlockTokens = None,
    start: Annotated[str, typer.Option(help="Use the trace from this time on.")] = "0s",
    end: Annotated[str | None, typer.Option(help="Use the trace up to this time.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "--num-prompts", help="At most so many requests.")] = None,
    sample: Annotated[float, typer.Option(help="Share of whole sessions to keep, 0 to 1.")] = 1.0,
    speed: Annotated[float, typer.Option(help="Replay so many times as fast as recorded.")] = 1.0,
    rate: Annotated[
        str | None, typer.Option("--rate", "--request-rate", help="Mean requests per second; inf sends all at once.")
    ] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="trace (as recorded), constant, poisson, gamma; trace if left out.")
    ] = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Shape of gamma gaps: 1 is Poisson, below comes in bursts.")
    ] = (None),
    ramp: Annotated[str | None, typer.Option(help="Rates over time: 1-8/60s,8/2min.")] = None,
    jitter: Annotated[str, typer.Option(help="Add up to so much to each recorded arrival.")] = "0s",
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    max_concurrency: Annotated[int | None, typer.Option(help="Most requests in flight; the others wait.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: so many in flight, times ignored.")] = None,
    warmups: Annotated[int, typer.Option("--num-warmups", "--warmups", help="Requests before the run.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes that send.", min=0)] = 1,
    timeout: Annotated[str, typer.Option(help="A request's limit; none for no limit.")] = "10min",
    drain: Annotated[str, typer.Option(help="Wait so long for the last answers.")] = "2min",
    max_tokens: Annotated[int | None, typer.Option(help="Cap of answers the trace has none for.", min=1)] = None,
    max_model_len: Annotated[int | None, typer.Option(help="The server's limit, if it does not tell.", min=2)] = None,
    too_long: Annotated[TooLong, typer.Option(help="What to do about requests over the server's limit.")] = (
        TooLong.ERROR
    ),
    scale_input: Annotated[float, typer.Option(help="Factor on the length of made-up prompts.")] = 1.0,
    token_range: Annotated[str | None, typer.Option(help="Ids of made-up prompts: LOW-HIGH.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Override the trace's temperature.", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="Override the trace's top_p.")] = None,
    token_ids: Annotated[bool, typer.Option("--token-ids", help="Ask for and record token ids.")] = False,
    model: Annotated[str | None, typer.Option(help="Model name to ask for; the server's first if left out.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="'Name: value', sent along; may be repeated.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Accept any certificate (https).")] = False,
    keep_cache: Annotated[bool, typer.Option("--keep-cache", help="Do not empty the prefix cache first.")] = False,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Measure the client's own error at this load first; runs of 30 s and more do, once a day.",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", help="Exit with 1 if this holds: 'attainment<0.99'.")
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="Locust's page with live charts; starts the run there.")] = False,
    web_host: Annotated[str, typer.Option(help="Address of the page.")] = "127.0.0.1",
    web_port: Annotated[int, typer.Option(help="Port of the page.", min=1, max=65535)] = 8089,
    master: Annotated[bool, typer.Option("--master", help="Wait for workers on other machines.")] = False,
    worker: Annotated[bool, typer.Option("--worker", help="Be a worker of a master elsewhere (no TRACE).")] = False,
    master_host: Annotated[str, typer.Option(help="Where the master is, or listens.")] = "127.0.0.1",
    master_port: Annotated[int, typer.Option(help="The master's port.", min=1, max=65535)] = 5557,
    expect_workers: Annotated[int, typer.Option(help="Workers elsewhere to wait for.", min=0)] = 0,
) -> int:
    """Replay a trace against a server and report what happened."""
    from kvload.address import Address
    from kvload.analysis import gates
    from kvload.cli.arrival_options import arrival_spec
    from kvload.cli.options import read_limits
    from kvload.cli.replay_display import Display
    from kvload.errors import ExitStatus, UsageError
    from kvload.experiment.replay import Listener, ReplayOptions, replay_once
    from kvload.units import parse_duration
    from kvload.workloads.traces.samples import trace_path

    headers = dict(parse_header(text) for text in header or [])
    if worker:
        from kvload.workloads.run.headers import request_headers
        from kvload.workloads.swarm.remote import run_worker

        return run_worker(master_host, master_port, request_headers(headers))
    names, more_limits = _trace_and_limits(words or [])
    limits = read_limits(slo, " ".join([goodput, *more_limits]))
    conditions = [gates.parse(text) for text in fail_if or []]
    if master and not expect_workers:
        raise UsageError("say how many workers elsewhere to wait for", where="--master", hint="--expect-workers N")
    sampling = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    options = ReplayOptions(
        trace=trace_path(names),
        server=server,
        address=None if url is None else Address.parse(url, insecure=insecure),
        format=format_name,
        sort=sort,
        time_unit=time_unit,
        block_tokens=block_tokens,
        mode=mode.value,
        arrivals=arrival_spec(
            arrivals, speed, rate, burstiness, ramp, concurrency, jitter=jitter, start=start, end=end, seed=seed
        ),
        slo=limits,
        seed=seed,
        out=out,
        model=model,
        max_model_len=max_model_len,
        default_max_tokens=max_tokens,
        too_long=too_long.value,
        scale_input=scale_input,
        limit=limit,
        sample=sample,
        sampling=sampling,
        return_token_ids=token_ids,
        token_range=None if token_range is None else _token_range(token_range),
        warmups=warmups,
        workers=workers,
        timeout_s=None if timeout == "none" else parse_duration(timeout, where="--timeout"),
        drain_s=parse_duration(drain, where="--drain"),
        max_concurrency=max_concurrency,
        concurrency=concurrency,
        headers=headers,
        web_host=web_host,
        web_port=web_port if web else None,
        master_host=master_host if master else None,
        master_port=master_port,
        remote_workers=expect_workers if master else 0,
        reset_cache=not keep_cache,
        calibrate=calibrate,
    )
    reports: list[Any] = []

    def report(run: Any) -> None:
        display.close()
        display.notice(f"run folder: {run.path}")
        if run.manifest().started_at is not None:
            reports.append(_report(run, as_json=json_output))

    with Display(quiet=quiet) as display:
        for condition in conditions:
            display.notice(str(condition))
        if web:
            display.notice(f"the page is at http://{web_host}:{web_port}/kvload/: start the run there")
        manifest = replay_once(options, Listener(display.progress, display.notice, report)).manifest()
    for found in reports:
        gates.check(conditions, gates.report_values(found))
    if manifest.ended == "interrupted":
        return ExitStatus.INTERRUPTED
    return ExitStatus.SERVER if manifest.partial else ExitStatus.OK


def _report(run: Any, *, as_json: bool) -> Any:
    import json
    import sys

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


def _trace_and_limits(words: list[str]) -> tuple[str, list[str]]:
    """vLLM's ``--goodput`` takes several words, of which all but the first arrive as arguments here."""
    from kvload.errors import UsageError

    limits = [word for word in words if word.split(":")[0] in {"ttft", "tpot", "e2e", "e2el"} and ":" in word]
    names = [word for word in words if word not in limits]
    if len(names) != 1:
        raise UsageError(f"one trace, not {len(names)}", where="TRACE", hint="kvload replay TRACE")
    return names[0], limits


def parse_header(text: str) -> tuple[str, str]:
    """Name and value of a ``--header`` option.

    Raises:
        UsageError: it is not ``Name: value``.
    """
    from kvload.errors import UsageError

    name, separator, value = text.partition(":")
    if not separator or not name.strip():
        # the text may be a key: it is not repeated
        raise UsageError("a header is written 'Name: value'", where="--header")
    return name.strip(), value.strip()


def _token_range(text: str) -> tuple[int, int]:
    from kvload.errors import UsageError

    low, _, high = text.partition("-")
    if not low.isdigit() or not high.isdigit():
        raise UsageError(f"'{text}' is no range of token ids", where="--token-range", hint="write LOW-HIGH")
    return int(low), int(high)
