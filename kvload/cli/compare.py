"""``kvload compare``: one trace under several methods, compared request by request."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvload.cli.launch import LaunchCommand
from kvload.cli.replay import MODE_HELP, Mode, TooLong
from kvload.cli.traces import BlockTokens, TimeUnit

if TYPE_CHECKING:
    from kvload.experiment.plan import ExperimentPlan

app = typer.Typer(add_completion=False)


@app.command(cls=LaunchCommand, options_metavar="[OPTIONS] [-- ENGINE ARGS]")
def compare(
    ctx: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="TRACE | RUN RUN ...", help="A trace to replay, or run folders that are there already."),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="A method to launch; may be repeated.")] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="NAME=http://HOST:PORT, a server that runs already; may be repeated.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The arm to compare with; none or auto, else the first.")] = None,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Run the baseline twice, to see how much equal arms differ.")
    ] = True,
    floor_run: Annotated[
        Path | None, typer.Option(help="With run folders: the baseline's second run.", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often each arm is run, in rotated order.", min=1)] = 3,
    engine: Annotated[str, typer.Option(help="auto, embedded, vllm or sglang.")] = "auto",
    model: Annotated[str | None, typer.Option(help="Model to launch; kvload's probe model if left out.")] = None,
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV cache, as in 512MiB.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt and answer, in tokens.", min=1)] = None,
    python: Annotated[str | None, typer.Option(help="The Python the engine is installed in.")] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check each server's cache first.")] = True,
    slo: Annotated[str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms,e2e=20s.")] = "",
    mode: Annotated[Mode, typer.Option(help=MODE_HELP)] = Mode.AUTO,
    format_name: Annotated[str | None, typer.Option("--format", help="The trace's format.")] = None,
    time_unit: TimeUnit = None,
    block_tokens: BlockTokens = None,
    start: Annotated[str, typer.Option(help="Use the trace from this time on.")] = "0s",
    end: Annotated[str | None, typer.Option(help="Use the trace up to this time.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "--num-prompts", help="At most so many requests.")] = None,
    speed: Annotated[float, typer.Option(help="Replay so many times as fast as recorded.")] = 1.0,
    rate: Annotated[str | None, typer.Option("--rate", "--request-rate", help="Mean requests per second.")] = None,
    arrivals: Annotated[str | None, typer.Option(help="trace, constant, poisson or gamma.")] = None,
    burstiness: Annotated[float | None, typer.Option(help="Shape of gamma gaps: 1 is Poisson.")] = None,
    jitter: Annotated[str, typer.Option(help="Add up to this much to every recorded arrival.")] = "0s",
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    max_concurrency: Annotated[int | None, typer.Option(help="Most requests in flight.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: so many in flight.")] = None,
    warmups: Annotated[int, typer.Option("--num-warmups", "--warmups", help="Requests before each run.", min=0)] = 4,
    workers: Annotated[int, typer.Option(help="Processes that send.", min=1)] = 1,
    timeout: Annotated[str, typer.Option(help="A request's limit; none for no limit.")] = "10min",
    max_tokens: Annotated[int | None, typer.Option(help="Cap of answers the trace has none for.", min=1)] = None,
    too_long: Annotated[TooLong, typer.Option(help="What to do about requests over the server's limit.")] = (
        TooLong.ERROR
    ),
    scale_input: Annotated[float, typer.Option(help="Factor on the length of made-up prompts.")] = 1.0,
    header: Annotated[list[str] | None, typer.Option(help="'Name: value', sent along; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the experiment.", show_default=False)] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the experiment in this folder.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and an estimate of its time.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", help="Exit with 1 if this holds: 'inflation.mean>1.05'.")
    ] = None,
) -> None:
    """Replay one trace under several methods and compare request by request."""
    from kvload.analysis import gates
    from kvload.cli.arrival_options import arrival_spec
    from kvload.cli.compare_runs import Outcome, existing_arms, make_runs, show, show_experiment
    from kvload.cli.options import read_limits
    from kvload.cli.replay import parse_header
    from kvload.errors import UsageError
    from kvload.experiment.plan import PLAN_NAME, load
    from kvload.units import parse_duration

    conditions = [gates.parse(text) for text in fail_if or []]
    limits = read_limits(slo)
    paths = what or []
    headers = dict(parse_header(text) for text in header or [])
    outcome = Outcome(conditions=tuple(conditions), as_json=json_output, limits=limits)
    if paths and all(Path(path).is_dir() for path in paths) and resume is None:
        if method or arm:
            raise UsageError("run folders are compared as they are", where="--method, --arm")
        folders = [Path(path) for path in paths]
        if len(folders) == 1 and (folders[0] / PLAN_NAME).is_file():
            show_experiment(load(folders[0]), folders[0], outcome)
        else:
            show(existing_arms(folders, baseline, floor_run), out, outcome)
        return
    if resume is not None:
        if paths or method or arm:
            raise UsageError("the folder says what is compared", where="--resume", hint="give nothing besides it")
        make_runs(None, resume, headers, outcome, verify=verify, dry_run=dry_run)
        return
    if len(paths) != 1:
        raise UsageError(f"one trace, not {len(paths)}", where="TRACE", hint="kvload compare TRACE --method ...")
    launch: dict[str, Any] = {
        "model": model,
        "engine": engine,
        "load_format": load_format,
        "kv_memory": _bytes(kv_memory),
        "max_model_len": max_model_len,
        "python": python,
        "engine_args": list(ctx.meta.get("engine_args", ())),
    }
    replay: dict[str, Any] = {
        "format": format_name,
        "time_unit": time_unit,
        "block_tokens": block_tokens,
        "mode": mode.value,
        "slo": limits,
        "seed": seed,
        "default_max_tokens": max_tokens,
        "too_long": too_long.value,
        "scale_input": scale_input,
        "limit": limit,
        "warmups": warmups,
        "workers": workers,
        "timeout_s": None if timeout == "none" else parse_duration(timeout, where="--timeout"),
        "max_concurrency": max_concurrency,
        "concurrency": concurrency,
    }
    spec = arrival_spec(
        arrivals, speed, rate, burstiness, None, concurrency, jitter=jitter, start=start, end=end, seed=seed
    )
    plan = _plan(paths[0], method or [], arm or [], baseline, floor, repeats, launch, replay, spec)
    make_runs(plan, out, headers, outcome, verify=verify, dry_run=dry_run)


def _plan(
    trace: str,
    methods: list[str],
    arms: list[str],
    baseline: str | None,
    floor: bool,
    repeats: int,
    launch: dict[str, Any],
    replay: dict[str, Any],
    spec: Any,
) -> "ExperimentPlan":
    import msgspec

    from kvload.experiment.plan import ExperimentPlan, make_arms
    from kvload.workloads.traces.samples import trace_path

    path = trace_path(trace)
    return ExperimentPlan(
        trace=str(path),
        trace_sha256=trace_digest(path),
        arms=make_arms(methods, arm_urls(arms), baseline=baseline, with_floor=floor),
        repeats=repeats,
        launch=launch,
        replay={**replay, "arrivals": msgspec.to_builtins(spec)},
    )


def arm_urls(arms: list[str]) -> dict[str, str]:
    """Names and addresses of ``--arm`` options.

    Raises:
        UsageError: one is not ``NAME=http://HOST:PORT``.
    """
    from kvload.address import Address
    from kvload.errors import UsageError

    urls: dict[str, str] = {}
    for text in arms:
        name, separator, url = text.partition("=")
        if not separator or not name:
            # the text may hold a key: it is not repeated
            raise UsageError("an arm is written NAME=http://HOST:PORT", where="--arm")
        urls[name] = Address.parse(url, where=f"--arm {name}").url
    return urls


def trace_digest(path: Path) -> str:
    """The SHA-256 of a trace file's content.

    Raises:
        TraceError: it cannot be read.
    """
    import hashlib

    from kvload.errors import TraceError

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _bytes(text: str | None) -> int | None:
    from kvload.units import parse_bytes

    return parse_bytes(text, where="--kv-memory") if text else None
