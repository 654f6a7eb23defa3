"""``kvload export``: the requests of a run as CSV or Parquet, its figures as a Prometheus textfile."""

from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    csv: Annotated[Path | None, typer.Option(help="Write one row a request as CSV.", show_default=False)] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="The same as Parquet (pip install 'kvload[parquet]').", show_default=False)
    ] = None,
    prometheus: Annotated[
        Path | None, typer.Option(help="Write the figures for node exporter's textfile collector.", show_default=False)
    ] = None,
    texts: Annotated[bool, typer.Option("--texts", help="With the answers' texts.")] = False,
) -> None:
    """Write a run's requests or figures for other programs."""
    import sys

    from kvload.analysis.report import export as exports
    from kvload.analysis.report import prometheus_text
    from kvload.analysis.run.summary import summarise
    from kvload.errors import UsageError
    from kvload.rundir import RunDir

    if csv is None and parquet is None and prometheus is None:
        raise UsageError("say what to write", where="export", hint="--csv FILE, --parquet FILE or --prometheus FILE")
    opened = RunDir.open(run)
    if csv is not None:
        print(f"wrote {exports.write_csv(opened, csv, texts=texts):,} requests to {csv}", file=sys.stderr)
    if parquet is not None:
        print(f"wrote {exports.write_parquet(opened, parquet, texts=texts):,} requests to {parquet}", file=sys.stderr)
    if prometheus is not None:
        # in one step, so that the collector never reads half of it
        temporary = prometheus.with_name(f"{prometheus.name}.tmp")
        temporary.write_text(prometheus_text.render(summarise(opened)), encoding="utf-8")
        temporary.replace(prometheus)
        print(f"wrote {prometheus}", file=sys.stderr)
