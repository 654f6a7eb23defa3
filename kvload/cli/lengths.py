"""``kvload lengths``: what a method does to the length of answers, as ``kvload predict --lengths`` takes it."""

from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.route import Arms, Baseline, Comparisons, Part, Seed

app = typer.Typer(add_completion=False)


@app.command(help="Tell what each method does to the length of answers: ratios to the baseline's, by task.")
def lengths(
    comparisons: Comparisons,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the ratios for kvload predict --lengths (JSON).")
    ] = None,
    arm: Arms = None,
    baseline: Baseline = None,
    part: Part = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    import json
    import sys
    from dataclasses import asdict

    from kvload.cli.route_tables import print_lengths
    from kvload.errors import UsageError
    from kvload.experiment.routing.fitting import Source, length_models, parse_part

    source = Source(comparisons, baseline, arms=arm or (), part=parse_part(part))
    models, notes = length_models(source, seed=seed)
    if as_json:
        print(json.dumps({"models": [asdict(model) for model in models], "notes": notes}, indent=2))
    else:
        print_lengths(models, notes)
    if output is not None:
        try:
            output.write_text(json.dumps({model.arm: model.ratios for model in models}) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(output)) from error
        print(f"wrote {output}", file=sys.stderr)
