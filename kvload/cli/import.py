"""``kvload import``: run folders of what other load generators saved."""

from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.options import Slo, grouped

app = typer.Typer(add_completion=False)


@app.command(name="import")
@grouped
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            help="A result of vllm bench serve --save-detailed, or AIPerf's profile_export.jsonl.", show_default=False
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What reports call it: its method; the file's name if left out.")] = (
        None
    ),
    slo: Slo = "",
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if left out.", show_default=False)] = None,
) -> None:
    """Make a run folder of what another load generator saved; then: kvload report, kvload compare RUN RUN."""
    import sys

    from kvload.cli.readings import read_limits
    from kvload.experiment.foreign import read, write

    saved = read(file)
    called = name or file.stem
    run = write(saved, file, out or Path("runs") / called, name=called, slo=read_limits(slo))
    print(f"{len(saved.requests):,} requests of {saved.tool}", file=sys.stderr)
    print(run.path)
