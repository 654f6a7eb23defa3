"""``kvload predict``: what a method would do to a trace, from step times of runs that were made anyway."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from kvload.servers.simulator.cluster import Load
    from kvload.step_model import StepModels


class PredictGroup(TyperGroup):
    """Takes ``kvload predict TRACE ...`` as ``kvload predict trace TRACE ...``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["trace", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    add_completion=False,
    cls=PredictGroup,
    no_args_is_help=True,
    help="Predict latency and goodput of a trace under each method, from runs that were made already.",
)

ModelFile = Annotated[Path, typer.Option("--model", help="Step models, as 'kvload predict fit' makes them.")]


@app.command()
def fit(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Run folders; several of a method are joined.")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="A table of step times instead: CSV with method, stage, batch, length, seconds.")
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(help="Put a designed load on this server instead: a launched one's name, or its URL.")
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=LOG", help="What --step-log wrote, in place of what chunk times show of steps."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the models.")] = Path("model.json"),
    method: Annotated[str | None, typer.Option(help="Method of a server that does not say its own.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for, with --calibrate.")] = None,
    seconds: Annotated[float, typer.Option(help="About how long --calibrate may take.", min=5)] = 60.0,
    runs_out: Annotated[
        Path | None, typer.Option("--runs-out", help="Folder for --calibrate's runs; runs/TIME-calibrate if left out.")
    ] = None,
    pool_tokens: Annotated[int | None, typer.Option(help="Tokens the cache holds.", min=1, max=10**9)] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests running at once.", min=1, max=10**6)] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Tokens of a step.", min=1, max=10**9)] = None,
) -> None:
    """Fit step times of every method among some runs, of a running server, or of a published table."""
    import sys

    from kvload.errors import UsageError
    from kvload.experiment.prediction.fitting import fit_models, fit_points
    from kvload.experiment.prediction.shape import Overrides
    from kvload.step_model import write

    overrides = Overrides(pool_tokens, max_num_seqs, chunk_tokens, method)
    logs = _by_method(steps or [])
    several = [name for name, files in logs.items() if len(files) > 1]
    if several:
        raise UsageError("one log of a method", where=f"--steps {several[0]}")
    given = sum([points is not None, bool(runs), calibrate is not None])
    if given > 1 or (not given and not logs) or (points is not None and logs):
        raise UsageError(
            "give run folders, a server with --calibrate (both with --steps or without), a table with --points, or"
            " --steps alone",
            where="RUN, --calibrate, --steps, --points",
        )
    if calibrate is not None:
        from kvload.experiment.prediction.calibrate import Target, run_calibration, target_of
        from kvload.experiment.replay import default_out

        target = target_of(calibrate, Target(model=model, pool_tokens=pool_tokens, method=method))
        folder = runs_out or default_out(Path("calibrate"))
        done = run_calibration(target, folder, seconds=seconds, say=lambda text: print(text, file=sys.stderr))
        for text in done.left_out:
            print(f"left out: {text}", file=sys.stderr)
        print(f"what was measured is in {folder}", file=sys.stderr)
        runs = done.runs
    if points is not None:
        models, errors = fit_points(points, overrides)
    else:
        models, errors = fit_models(runs or [], overrides, {name: files[0] for name, files in logs.items()}), []
    write(out, models)
    from kvload.cli.predict_tables import print_models, print_stage_errors

    print_models(models)
    if errors:
        print_stage_errors(errors)
    if calibrate is not None and not logs:
        _print_log(runs or [], models)
    print(f"wrote {out}", file=sys.stderr)


def _print_log(runs: Sequence[Path], models: "StepModels") -> None:
    """Hold fitted models against the log that the server itself keeps of its steps, where it keeps one here."""
    from kvload.cli.predict_tables import print_truth
    from kvload.errors import UsageError
    from kvload.experiment.prediction.logged import log_of
    from kvload.experiment.prediction.truth import truth_errors
    from kvload.rundir import RunDir

    log = log_of(RunDir.open(runs[-1]).manifest()) if runs else None
    if log is None:
        return
    try:
        found = truth_errors([log], models.models[0].method, models.models[0])
    except UsageError:  # too few steps of any shape; the fit, which is what was asked for, is done
        return
    print(f"\nheld against the engine's own log, {log}:")
    print_truth(found)


@app.command()
def check(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs that the models were not fitted from.")],
    model: ModelFile = Path("model.json"),
    slo: Annotated[str, typer.Option(help="Limits: ttft=500ms,tpot=50ms; those of the runs where left out.")] = "",
    method: Annotated[str | None, typer.Option(help="Method of runs that do not say theirs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Hold predictions against runs: every figure with its error, the worst one named."""
    import json
    from dataclasses import asdict

    from kvload.cli.check_tables import print_checks
    from kvload.cli.predict_words import finite
    from kvload.cli.readings import read_request_limits
    from kvload.experiment.prediction.check import check_runs
    from kvload.step_model import read

    found = check_runs(runs, read(model), read_request_limits(slo), method=method)
    if as_json:
        print(json.dumps(finite(asdict(found)), indent=2))
    else:
        print_checks(found)


@app.command()
def steps(
    logs: Annotated[list[str], typer.Argument(metavar="METHOD=LOG", help="What --step-log wrote, or a run folder.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="Step models that were fitted from chunk times; none if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Hold step times against an engine's own log of them: one batch size and one length out, and a model's error."""
    import json
    from dataclasses import asdict

    from kvload.cli.predict_tables import print_truth
    from kvload.cli.predict_words import finite
    from kvload.experiment.prediction.truth import truth_errors
    from kvload.step_model import read

    models = read(model) if model is not None else None
    found = []
    for method, files in _by_method(logs).items():
        found += truth_errors(files, method, models.of(method) if models is not None else None)
    if as_json:
        print(json.dumps(finite([asdict(each) for each in found]), indent=2))
    else:
        print_truth(found)


def _by_method(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Files by the method they are of, from ``METHOD=FILE``."""
    from kvload.errors import UsageError

    paths: dict[str, list[Path]] = {}
    for text in texts:
        # A method may have settings of its own: h2o:budget=512=steps.jsonl.
        method, separator, file = text.rpartition("=")
        if not method or not separator or not file:
            raise UsageError(f"'{text}' is not METHOD=LOG", where="METHOD=LOG", hint="none=steps.jsonl")
        paths.setdefault(method, []).append(Path(file))
    return paths


@app.command()
def trace(
    path: Annotated[str, typer.Argument(metavar="TRACE | RUN", help="A trace with lengths, or a run folder.")],
    model: ModelFile = Path("model.json"),
    method: Annotated[list[str] | None, typer.Option(help="Methods, the baseline first; all if left out.")] = None,
    slo: Annotated[str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms (also e2e).")] = "",
    rate: Annotated[
        str | None,
        typer.Option(
            help="Requests a second: 1,2,4; auto searches for what each method carries; as recorded if left out."
        ),
    ] = None,
    target: Annotated[
        float, typer.Option(help="With --rate auto: share that must meet all limits.", min=0.01, max=1)
    ] = 0.9,
    ramp: Annotated[str | None, typer.Option(help="A rate over time instead: 1-8/6h,8/2h.")] = None,
    repeat: Annotated[int, typer.Option(help="Take the trace so often.", min=1)] = 1,
    burstiness: Annotated[
        float | None, typer.Option(help="With --rate, --ramp: shape of gamma gaps; 1, Poisson, if left out.", min=0.001)
    ] = None,
    speed: Annotated[float, typer.Option(help="Times as fast as recorded.", min=0.001)] = 1.0,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many requests.", min=1)] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", help="Length of answers where the trace has none.", min=1)
    ] = None,
    replicas: Annotated[int, typer.Option(help="Servers.", min=1)] = 1,
    policy: Annotated[str, typer.Option(help="round-robin, least-loaded or sticky.")] = "round-robin",
    draws: Annotated[int, typer.Option(help="Simulations behind an interval; 0 for none.", min=0)] = 20,
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.", min=0)] = 0,
    lengths: Annotated[
        Path | None, typer.Option(help="What 'kvload lengths' wrote: answers grow by these ratios.")
    ] = None,
    format_name: Annotated[str | None, typer.Option("--format", help="The trace's format.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write simulated run folders below this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Predict latency, attainment and goodput of a trace under each method."""
    import json
    import sys
    from dataclasses import asdict

    from kvload.balancing import policy_of
    from kvload.cli.predict_tables import print_capacities, print_predictions
    from kvload.cli.predict_words import finite
    from kvload.cli.readings import read_request_limits
    from kvload.errors import UsageError
    from kvload.experiment.prediction import forecast
    from kvload.experiment.prediction import loads as trace_loads
    from kvload.experiment.prediction.capacity import find_capacities
    from kvload.step_model import read

    models = read(model)
    methods = list(dict.fromkeys(method or [each.method for each in models.models]))
    limits = read_request_limits(slo)
    searching = rate == "auto"
    if searching and out is not None:
        raise UsageError("there is no run to write of a search", where="--out", hint="give the rates: --rate 4,8")
    loads = trace_loads.read_loads(
        trace_loads.trace_or_run(path),
        rates="1" if searching else rate,
        burstiness=burstiness,
        speed=speed,
        seed=seed,
        format=format_name,
        limit=limit,
        default_output=output_tokens,
        ramps=ramp,
        repeat=repeat,
    )
    ratios = trace_loads.read_ratios(lengths, methods) if lengths is not None else None
    for text in trace_loads.told_ratios(ratios, methods) if ratios is not None else []:
        print(text, file=sys.stderr)
    options = forecast.Serving(replicas, policy_of(policy), draws, seed)

    def arriving(load: "Load", at: float, number: int) -> "Load":
        return trace_loads.other_arrivals(load, at, burstiness or 1.0, seed + 1 + number)

    if searching:
        (load,) = loads.values()
        carried = find_capacities(
            load, models, methods, limits, arriving, target=target, serving=options, length_ratios=ratios
        )
        if as_json:
            print(json.dumps(finite([asdict(each) for each in carried]), indent=2))
        else:
            print_capacities(carried, limits, target, replicas, draws)
        return
    # Arrivals that are made up may come otherwise; recorded ones have come as they did.
    other = arriving if rate is not None else None
    found = forecast.predict(loads, models, methods, limits, options, length_ratios=ratios, arriving=other)
    if out is not None:
        forecast.write_runs(out, loads, models, methods, limits, options, length_ratios=ratios)
    if as_json:
        print(json.dumps(finite([asdict(each) for each in found]), indent=2))
    else:
        print_predictions(found, limits, replicas, draws)
