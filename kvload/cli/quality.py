"""``kvload quality``: compare per-sample score files of several arms."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    help='Compare per-sample scores ([{"id", "score"}]) of several arms: changes of the mean, negative samples.'
)
@grouped
def quality(
    scores: Annotated[
        list[Path],
        typer.Argument(help="Folders ARM/DATASET.json, one of such folders, or files ARM__DATASET.json."),
    ],
    pattern: Annotated[
        str | None, typer.Option(help="How files are named otherwise: '{arm}_{dataset}_eval.json'.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Arm to compare with, if not named none, base, fp16 ...")] = None,
    floor: Annotated[str | None, typer.Option(help="The arm that is the baseline's second run (A/A).")] = None,
    theta: Annotated[
        str, typer.Option(help="Relative falls that make a sample negative, by comma; the least is primary.")
    ] = "0.1,0.2,0.5",
    gate: Annotated[str, typer.Option(help="What the baseline must reach: median, mean, or a score.")] = "median",
    sets: Annotated[list[str] | None, typer.Option("--set", help="Arms, by comma, to count common ones of.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    details: Annotated[bool, typer.Option("--details", help="Print every arm, task and theta.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trace: Annotated[str | None, typer.Option(help="With --export: the trace whose ids the scores have.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the negative samples' requests as a trace.")] = None,
) -> None:
    import numpy as np

    from kvload.analysis.quality.assess import assess
    from kvload.analysis.quality.negatives import parse_gate, parse_thetas
    from kvload.analysis.quality.score_files import as_table, read_scores
    from kvload.errors import UsageError

    if (export is None) != (trace is None):
        raise UsageError("--export and --trace need each other")
    table = as_table(read_scores(scores, pattern), baseline)
    found = assess(
        table,
        floor=floor,
        thetas=parse_thetas(theta),
        gate=parse_gate(gate),
        sets=None if sets is None else [part.split(",") for part in sets],
        rng=np.random.default_rng(seed),
    )
    if export is not None and trace is not None:
        from kvload.workloads.traces.formats import read_trace
        from kvload.workloads.traces.pick import pick
        from kvload.workloads.traces.samples import trace_path
        from kvload.workloads.traces.trace import write_trace_file

        path = trace_path(trace)
        count = write_trace_file(pick(lambda: read_trace(path), found.negative_ids(table)), export)
        print(f"{count:,} requests written to {export}", file=sys.stderr)
    if as_json:
        import json

        print(json.dumps(found.as_dict(), indent=2))
        return

    from kvload.analysis.report.quality_text import print_quality
    from kvload.terminal import console

    print_quality(found, console(), details=details)
