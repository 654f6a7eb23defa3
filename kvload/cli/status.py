"""``kvload status``: the servers that were launched."""

from typing import TYPE_CHECKING, Annotated

import typer

from kvload.cli.options import grouped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """Show the servers that were launched: where they listen, what they run, and why dead ones died."""
    import json
    import sys
    import time

    from kvload.servers.lifecycle import registry
    from kvload.terminal import plain

    entries = registry.entries()
    for error in registry.damaged():
        print(f"warning: {plain(str(error))}", file=sys.stderr)
    if as_json:
        print(json.dumps([registry.as_dict(entry) for entry in entries], indent=2))
        return
    from rich import box
    from rich.table import Table

    from kvload.terminal import WIDE_COLUMNS
    from kvload.terminal import console as make_console

    console = make_console(pipe_width=WIDE_COLUMNS)
    if not entries:
        print("no server is running; start one with 'kvload launch'", file=sys.stderr)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "state", "url", "engine", "model", "method", "KV tokens", "pid", "up"):
        table.add_column(heading, justify="right" if heading in {"KV tokens", "pid", "up"} else "left", overflow="fold")
    dead = []
    for entry in entries:
        state = registry.state_of(entry)
        if state == "dead":
            dead.append(entry)
        table.add_row(
            entry.name,
            state,
            entry.url,
            f"{entry.engine} {entry.info.engine_version or ''}".strip(),
            entry.info.model or "",
            entry.info.method or "",
            f"{entry.info.pool_tokens:,}" if entry.info.pool_tokens else "",
            str(entry.pid) if entry.pid else "",
            _age(time.time() - entry.launched_at) if state != "dead" else "",
        )
    unfolded = console.options.update(max_width=10_000)
    if console.measure(table, options=unfolded).maximum <= console.width:
        console.print(table)
    else:
        _print_blocks(table, console)
    for entry in dead:
        cause = registry.why_dead(entry)
        console.print(f"{entry.name} died: {cause.message}", markup=False, soft_wrap=True)
        console.print(
            f"  kvload logs {entry.name} shows its log; kvload stop {entry.name} clears it away", markup=False
        )


def _print_blocks(table: "Table", console: "Console") -> None:
    """What a table says where it would be folded: a server's address stays in one piece, to be copied."""
    headings = [str(column.header) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = [str(cell) for cell in row]
        console.print("  ".join(cells[:3]), soft_wrap=True)
        told = [f"{heading} {cell}" for heading, cell in zip(headings[3:], cells[3:], strict=True) if cell]
        console.print(f"  {', '.join(told)}")


def _age(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{seconds:.0f} s" if minutes == 0 else f"{minutes} min" if hours == 0 else f"{hours} h {minutes % 60} min"
