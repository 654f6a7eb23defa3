"""``kvload doctor``: check this machine."""

from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def doctor(
    python: Annotated[
        list[str] | None, typer.Option(help="Another Python to look for engines in; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Check this machine: engines, GPU, processor, memory, limits, clocks."""
    import json

    from kvload.servers.checkup import check

    findings = check(python or [])
    if as_json:
        print(
            json.dumps(
                [{"what": f.what, "found": f.found, "state": f.state, "advice": f.advice} for f in findings], indent=2
            )
        )
        return
    from rich.table import Table
    from rich.text import Text

    from kvload.terminal import console

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column()
    marks = {"ok": Text("ok", "green"), "warning": Text("!!", "yellow"), "info": Text("  ")}
    for finding in findings:
        found = Text(finding.found)
        if finding.advice:
            found.append(f"\n{finding.advice}", "dim")
        table.add_row(marks[finding.state], finding.what, found)
    console(pipe_width=None).print(table)
