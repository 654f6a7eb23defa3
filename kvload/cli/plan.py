"""``kvload plan``: how many servers a trace needs under each method, why, and what they cost."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def plan(
    path: Annotated[str, typer.Argument(metavar="TRACE | RUN", help="A trace with lengths, or a run folder.")],
    slo: Annotated[str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms (also e2e).")],
    model: Annotated[Path, typer.Option(help="Step models, as 'kvload predict fit' makes them.")] = Path("model.json"),
    method: Annotated[list[str] | None, typer.Option(help="Methods, the baseline first; all if left out.")] = None,
    target: Annotated[float, typer.Option(help="Share of requests that must meet all limits.", min=0.01, max=1)] = 0.99,
    rate: Annotated[str | None, typer.Option(help="Requests a second; as recorded if left out.")] = None,
    ramp: Annotated[str | None, typer.Option(help="A rate over time instead: 1-8/6h,8/2h.")] = None,
    repeat: Annotated[int, typer.Option(help="Take the trace so often.", min=1)] = 1,
    speed: Annotated[float, typer.Option(help="Times as fast as recorded.", min=0.001)] = 1.0,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many requests.", min=1)] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", help="Length of answers where the trace has none.", min=1)
    ] = None,
    most: Annotated[int, typer.Option(help="No more servers than these.", min=1)] = 256,
    policy: Annotated[str, typer.Option(help="round-robin, least-loaded or sticky.")] = "least-loaded",
    lengths: Annotated[
        Path | None, typer.Option(help="What 'kvload lengths' wrote: answers grow by these ratios.")
    ] = None,
    gpu_hour: Annotated[float | None, typer.Option(help="Price of a GPU-hour.", min=0)] = None,
    gpus: Annotated[int, typer.Option(help="GPUs of a server.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.", min=0)] = 0,
    format_name: Annotated[str | None, typer.Option("--format", help="The trace's format.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """How many servers each method needs for a trace, with the reason, and what they cost."""
    import json
    import sys
    from dataclasses import asdict

    from kvload.balancing import policy_of
    from kvload.cli.plan_tables import costs, print_plans
    from kvload.cli.predict_words import finite
    from kvload.cli.readings import read_request_limits
    from kvload.experiment.prediction import forecast
    from kvload.experiment.prediction import loads as trace_loads
    from kvload.experiment.prediction.plan import Wanted, plan_servers
    from kvload.step_model import read

    models = read(model)
    methods = list(dict.fromkeys(method or [each.method for each in models.models]))
    loads = trace_loads.read_loads(
        trace_loads.trace_or_run(path),
        rates=rate,
        speed=speed,
        seed=seed,
        format=format_name,
        limit=limit,
        default_output=output_tokens,
        ramps=ramp,
        repeat=repeat,
    )
    wanted = Wanted(read_request_limits(slo), target, most, policy_of(policy))
    ratios = trace_loads.read_ratios(lengths, methods) if lengths is not None else {}
    found = []
    for load in loads.values():
        for model_ in map(models.of, methods):
            longer = forecast.with_lengths(load, ratios.get(model_.method), seed, model_.max_model_len)
            found.append(plan_servers(longer, model_, wanted))
    if as_json:
        rows = [asdict(each) | asdict(costs(each, gpu_hour, gpus)) for each in found]
        print(json.dumps(finite(rows), indent=2))
    else:
        print_plans(found, gpu_hour, gpus)
    for text in trace_loads.told_ratios(ratios, methods) if lengths is not None else []:
        print(text, file=sys.stderr)
