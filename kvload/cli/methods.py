"""``kvload methods``: the compression methods, what each claims, and which engines offer it."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kvload.cli.options import grouped

if TYPE_CHECKING:
    from kvload.servers.engines.offers import Listed

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the compression methods, or explain one."""
    import difflib
    import json

    from kvload.errors import UsageError
    from kvload.servers.engines.offers import listed

    rows = listed()
    if name is not None:
        known = [row.name for row in rows]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise UsageError(f"no compression method '{name}'", hint=hint)
        rows = [row for row in rows if row.name == name]
    if as_json:
        found = [_as_dict(row) for row in rows]
        print(json.dumps(found if name is None else found[0], indent=2))
    elif name is None:
        _print_table(rows)
    else:
        _print_method(rows[0])


def _as_dict(row: "Listed") -> dict[str, Any]:
    from dataclasses import asdict

    method = row.method
    return {
        "name": row.name,
        "title": method.title if method else None,
        "summary": method.summary if method else None,
        "explanation": method.explanation if method else None,
        "paper": method.paper if method else None,
        "keeps_exact": method.keeps_exact if method else None,
        "evicts": method.evicts if method else None,
        "claim_is_ceiling": method.at_most if method else None,
        "options": {option.name: option.default for option in method.options} if method else {},
        "offers": [asdict(offer) for offer in row.offers],
    }


def _times(size: float) -> str:
    from kvload.servers.engines.offers import uncompressed_bytes

    return f"{uncompressed_bytes() / size:.2f}"


def _print_table(rows: "list[Listed]") -> None:
    from rich import box
    from rich.table import Table

    from kvload.servers.catalogue.claims import CLAIM_HEAD_DIM, CLAIM_TOKENS
    from kvload.terminal import WIDE_COLUMNS
    from kvload.terminal import console as make_console

    console = make_console(pipe_width=WIDE_COLUMNS)
    columns = _columns(rows)
    wide = console.width >= _LEAST_WIDTH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, cells in columns.items():
        if wide or heading not in _DETAILS:
            justify: Literal["left", "right"] = "right" if heading in {"bytes", "x"} else "left"
            least = max(map(len, cells)) if heading in {"method", "bytes", "x"} else None
            table.add_column(heading, justify=justify, overflow="fold", min_width=least)
    for place in range(len(rows)):
        table.add_row(*(cells[place] for heading, cells in columns.items() if wide or heading not in _DETAILS))
    console.print(table)
    console.print(
        f"bytes: per token, layer and KV head, in a sequence of {CLAIM_TOKENS} tokens at head size {CLAIM_HEAD_DIM}; "
        "x: how many times less than 16-bit numbers take.",
        soft_wrap=True,
    )
    console.print("kvload methods NAME explains one; kvload launch --method NAME:option=value starts a server with it.")


_DETAILS = frozenset({"kept exact", "options", "paper"})
"""Columns that a narrow terminal has no room for; ``kvload methods NAME`` shows them."""

_LEAST_WIDTH = 150
"""Columns of a terminal on which they can be read."""


def _columns(rows: "list[Listed]") -> dict[str, list[str]]:
    """The table's columns by their headings, a cell a method."""
    found: dict[str, list[str]] = {}
    for row in rows:
        method, size = row.method, row.offers[0].bytes_per_token
        cells = {
            "method": row.name,
            "bytes": f"{'<= ' if method and method.at_most else ''}{size:.0f}",
            "x": f"{'>= ' if method and method.at_most else ''}{_times(size)}",
            "kept exact": method.keeps_exact if method else "",
            "options": ",".join(f"{option.name}={option.default}" for option in method.options) if method else "",
            "paper": _identifier(method.paper) if method else "",
            "engines": ", ".join(offer.engine for offer in row.offers),
        }
        for heading, cell in cells.items():
            found.setdefault(heading, []).append(cell)
    return found


def _identifier(paper: str) -> str:
    """The shortest thing to look a paper up by."""
    at = paper.rfind("arXiv ")
    return paper[at:] if at >= 0 else paper


def _print_method(row: "Listed") -> None:
    lines = [row.name]
    method = row.method
    if method is not None:
        lines = [f"{row.name}: {method.title}", "", *method.explanation.strip().splitlines(), ""]
        lines += [f"Paper:       {method.paper}", f"Kept exact:  {method.keeps_exact}"]
    for offer in row.offers:
        limit = "at most " if method and method.at_most and offer.setting == row.name else ""
        size = (
            f"{limit}{offer.bytes_per_token:.0f} bytes per token, layer and KV head (x{_times(offer.bytes_per_token)})"
        )
        setting = f" as {offer.setting}" if offer.setting != row.name else ""
        lines.append(f"{offer.engine + ':':<13}{size}{setting}")
        if offer.note:
            lines.append(f"{'':<13}{offer.note}")
    if method is not None and method.options:
        lines += ["", "Options:"]
        lines += [f"  {f'{option.name}={option.default}':<14} {option.help}" for option in method.options]
    print("\n".join(lines))
