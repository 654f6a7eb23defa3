"""``kvload config``: which settings files are believed."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Allow a kvload.toml, or take that back.")


@app.command()
def allow(file: Annotated[Path, typer.Argument(help="The file.")] = Path("kvload.toml")) -> None:
    """Let a kvload.toml name programs, environments, addresses and headers, as long as it stays as it is."""
    import sys

    from kvload import trust

    trust.allow(file)
    print(f"{file} is allowed until it changes", file=sys.stderr)


@app.command()
def deny(file: Annotated[Path, typer.Argument(help="The file.")] = Path("kvload.toml")) -> None:
    """Take the permission of a kvload.toml back."""
    import sys

    from kvload import trust

    trust.deny(file)
    print(f"{file} is not allowed", file=sys.stderr)
