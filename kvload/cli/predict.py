"""``kvload predict``: what a method would do to a trace, from step times of runs that were made anyway."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


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
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders; several of a method are joined.")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="A table of step times instead (CSV): method,stage,batch,length,seconds.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the models.")] = Path("model.json"),
    pool_tokens: Annotated[int | None, typer.Option(help="Tokens the cache holds.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests running at once.")] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Tokens of a step.")] = None,
) -> None:
    """Fit step times of every method among some runs, or of a published table."""
    import sys

    from kvload.errors import UsageError
    from kvload.experiment.prediction.fitting import Overrides, fit_models, fit_points
    from kvload.step_model import write

    overrides = Overrides(pool_tokens, max_num_seqs, chunk_tokens)
    if (points is None) == (not runs):
        raise UsageError("give run folders, or a table with --points", where="RUN, --points")
    if points is not None:
        models, errors = fit_points(points, overrides)
    else:
        models, errors = fit_models(runs or [], overrides), []
    write(out, models)
    from kvload.cli.predict_tables import print_models, print_stage_errors

    print_models(models)
    if errors:
        print_stage_errors(errors)
    print(f"wrote {out}", file=sys.stderr)


@app.command()
def check(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs that the models were not fitted from.")],
    model: ModelFile = Path("model.json"),
    slo: Annotated[str, typer.Option(help="Limits: ttft=500ms,tpot=50ms; those of the runs where left out.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Hold predictions against runs: every figure with its error, the worst one named."""
    import json
    from dataclasses import asdict

    from kvload.cli.predict_tables import print_checks
    from kvload.experiment.prediction.check import check_runs
    from kvload.step_model import read
    from kvload.units import parse_limits

    found = check_runs(runs, read(model), parse_limits(slo, where="--slo"))
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print_checks(found)


@app.command()
def trace(
    path: Annotated[str, typer.Argument(metavar="TRACE | RUN", help="A trace with lengths, or a run folder.")],
    model: ModelFile = Path("model.json"),
    method: Annotated[list[str] | None, typer.Option(help="Methods, the baseline first; all if left out.")] = None,
    slo: Annotated[str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms,e2e=20s.")] = "",
    rate: Annotated[str | None, typer.Option(help="Requests a second: 1,2,4; as recorded if left out.")] = None,
    burstiness: Annotated[float, typer.Option(help="Shape of gamma gaps: 1 is Poisson.", min=0.001)] = 1.0,
    speed: Annotated[float, typer.Option(help="Times as fast as recorded.", min=0.001)] = 1.0,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many requests.", min=1)] = None,
    output_tokens: Annotated[int | None, typer.Option("--output", help="Answer length where there is none.")] = None,
    replicas: Annotated[int, typer.Option(help="Servers.", min=1)] = 1,
    policy: Annotated[str, typer.Option(help="round-robin, least-loaded or sticky.")] = "round-robin",
    draws: Annotated[int, typer.Option(help="Simulations behind an interval; 0 for none.", min=0)] = 20,
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    lengths: Annotated[Path | None, typer.Option(help="Ratios of answer lengths by method (JSON).")] = None,
    format_name: Annotated[str | None, typer.Option("--format", help="The trace's format.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write simulated run folders below this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Predict latency, attainment and goodput of a trace under each method."""
    import json
    from dataclasses import asdict

    from kvload.cli.predict_tables import print_predictions
    from kvload.experiment.prediction import forecast
    from kvload.experiment.prediction import loads as trace_loads
    from kvload.step_model import read
    from kvload.units import parse_limits
    from kvload.workloads.traces.samples import trace_path

    models = read(model)
    methods = method or [each.method for each in models.models]
    limits = parse_limits(slo, where="--slo")
    loads = trace_loads.read_loads(
        trace_path(path),
        rates=rate,
        burstiness=burstiness,
        speed=speed,
        seed=seed,
        format=format_name,
        limit=limit,
        default_output=output_tokens,
    )
    ratios = trace_loads.read_ratios(lengths) if lengths is not None else None
    options = forecast.Serving(replicas, forecast.policy_of(policy), draws, seed)
    found = forecast.predict(loads, models, methods, limits, options, length_ratios=ratios)
    if out is not None:
        forecast.write_runs(out, loads, models, methods, limits, options)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        print_predictions(found, limits, replicas)
