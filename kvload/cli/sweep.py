"""``kvload sweep``: several methods under rising load, and what each carries within the limits."""

from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.launch import LaunchCommand
from kvload.cli.replay import MODE_HELP, Mode, TooLong

app = typer.Typer(add_completion=False)

EXAMPLES = """Examples:

  kvload sweep trace.jsonl --engine vllm --model M --method none --method fp8-e4m3 --slo ttft=500ms,tpot=50ms
  kvload sweep trace.jsonl --arm a=http://127.0.0.1:8000 --arm b=http://127.0.0.1:8001 --rates 1,2,4,8 --slo ttft=1s
  kvload sweep trace.jsonl --method none --method int8 --concurrency 1,8,64 --slo tpot=50ms
  kvload sweep runs/20260101-120000-sweep --slo ttft=1s      (a finished one, judged by other limits)
"""


@app.command(cls=LaunchCommand, options_metavar="[OPTIONS] [-- ENGINE ARGS]", epilog=EXAMPLES)
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
    slo: Annotated[str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms,e2e=20s.")] = "",
    rates: Annotated[
        str | None, typer.Option(help="Requests a second: 1,2,4,8; auto searches for what each method carries.")
    ] = None,
    concurrency: Annotated[str | None, typer.Option(help="Requests in flight instead (closed loop): 1,8,64.")] = None,
    target: Annotated[float, typer.Option(help="Share of requests that must meet all limits.", min=0.01, max=1)] = 0.9,
    repeats: Annotated[int, typer.Option(help="How often each method is walked, in rotated order.", min=1)] = 1,
    duration: Annotated[str, typer.Option(help="Keep each rate up for so long, where the trace allows.")] = "60s",
    start_rate: Annotated[float, typer.Option(help="Where auto begins.", min=0.001)] = 1.0,
    tolerance: Annotated[float, typer.Option(help="auto stops when the rate is known this well.", min=0.001)] = 0.1,
    most: Annotated[int, typer.Option(help="auto tries at most so many rates of a method.", min=1)] = 12,
    baseline: Annotated[str | None, typer.Option(help="The arm to compare with; none or auto, else the first.")] = None,
    engine: Annotated[str, typer.Option(help="auto, embedded, vllm or sglang.")] = "auto",
    model: Annotated[str | None, typer.Option(help="Model to launch; kvload's probe model if left out.")] = None,
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV cache, as in 512MiB.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt and answer, in tokens.", min=1)] = None,
    python: Annotated[str | None, typer.Option(help="The Python the engine is installed in.")] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check each server's cache first.")] = True,
    mode: Annotated[Mode, typer.Option(help=MODE_HELP)] = Mode.AUTO,
    format_name: Annotated[str | None, typer.Option("--format", help="The trace's format.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "--num-prompts", help="At most so many requests a load.")] = (
        None
    ),
    burstiness: Annotated[float, typer.Option(help="Shape of gamma gaps: 1 is Poisson.", min=0.001)] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    warmups: Annotated[int, typer.Option("--num-warmups", "--warmups", help="Requests before each run.", min=0)] = 4,
    workers: Annotated[int, typer.Option(help="Processes that send.", min=1)] = 1,
    timeout: Annotated[str, typer.Option(help="A request's limit; none for no limit.")] = "10min",
    max_tokens: Annotated[int | None, typer.Option(help="Cap of answers the trace has none for.", min=1)] = None,
    too_long: Annotated[TooLong, typer.Option(help="What to do about requests over the server's limit.")] = (
        TooLong.ERROR
    ),
    scale_input: Annotated[float, typer.Option(help="Factor on the length of made-up prompts.")] = 1.0,
    header: Annotated[list[str] | None, typer.Option(help="'Name: value', sent along; may be repeated.")] = None,
    gpu_hour: Annotated[float | None, typer.Option(help="Price of a GPU-hour, for the cost of tokens.", min=0)] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs a server uses; as launched if left out.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep.", show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the sweep in this folder.", show_default=False)] = (
        None
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and an estimate of its time.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Raise the load on several methods and show what each carries within the limits."""
    from kvload.cli import sweep_runs
    from kvload.cli.options import read_limits
    from kvload.cli.replay import parse_header
    from kvload.errors import UsageError
    from kvload.experiment import sweep as sweeps

    limits = read_limits(slo)
    headers = dict(parse_header(text) for text in header or [])
    show = sweep_runs.Shown(as_json=json_output, limits=limits or None, price_per_gpu_hour=gpu_hour)
    if resume is not None:
        if what or method or arm:
            raise UsageError("the folder says what is swept", where="--resume", hint="give nothing besides it")
        return sweep_runs.make(sweeps.load(resume), resume, headers, show, verify=verify, dry_run=dry_run, is_new=False)
    if what is None:
        raise UsageError("a trace is required", where="TRACE", hint="kvload sweep TRACE --method ... --slo ...")
    if (Path(what) / sweeps.PLAN_NAME).is_file():
        return sweep_runs.show(sweeps.load(Path(what)), Path(what), show)
    axis, levels = sweep_runs.parse_loads(rates, concurrency)
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
        burstiness=burstiness,
        launch={
            "model": model,
            "engine": engine,
            "load_format": load_format,
            "kv_memory": sweep_runs.size(kv_memory),
            "max_model_len": max_model_len,
            "python": python,
            "engine_args": list(ctx.meta.get("engine_args", ())),
        },
        replay={
            "format": format_name,
            "mode": mode.value,
            "slo": limits,
            "seed": seed,
            "default_max_tokens": max_tokens,
            "too_long": too_long.value,
            "scale_input": scale_input,
            "limit": limit,
            "warmups": warmups,
            "workers": workers,
            "timeout_s": sweep_runs.timeout_s(timeout),
        },
        gpus=gpus,
        price_per_gpu_hour=gpu_hour,
    )
    return sweep_runs.make(plan, out, headers, show, verify=verify, dry_run=dry_run, is_new=True)
