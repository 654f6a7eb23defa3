"""``kvload config``: which settings are in force and where they come from; which files are believed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvload.config import Setting

app = typer.Typer(add_completion=False, help="Show the settings in force; allow a kvload.toml, or take that back.")

SECRET = frozenset({"header", "api_key", "arm_key", "env"})
"""Parameters whose values may be keys: they are not printed."""


@app.callback(invoke_without_command=True)
def config(
    ctx: typer.Context,
    changed: Annotated[bool, typer.Option("--changed", help="Only what a file or a variable sets.")] = False,
) -> None:
    """Show every option's value and where it comes from: the default, a file, or a variable."""
    if ctx.invoked_subcommand is None:
        _show((ctx.obj or {}).get("config"), changed=changed)


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


def _show(named: Path | None, *, changed: bool) -> None:
    import os

    from kvload.cli.main import COMMANDS, known_options, load_command
    from kvload.config import config_path, file_settings, state_dir, variable_settings
    from kvload.keys import API_KEY_VARIABLES
    from kvload.terminal import plain

    path = config_path(named=named)
    content = b"" if path is None else path.read_bytes()
    for name in COMMANDS:
        command = load_command(name)
        known = known_options(command)
        found: dict[tuple[tuple[str, ...], str], Setting] = {}
        for setting in file_settings(name, known, content, path, COMMANDS) if path is not None else ():
            found[setting.command, setting.parameter] = setting
        for setting in variable_settings(name, known, os.environ):
            found[setting.command, setting.parameter] = setting
        for where, parameter in _options(command, (name,)):
            given = found.get((where, parameter.name))
            if changed and given is None:
                continue
            flag = next(flag for flag in parameter.opts if flag.startswith("--")).removeprefix("--")
            value = parameter.default if given is None else given.value
            source = "default" if given is None else given.source + _not_taken(name, given, path, content, named)
            shown = _shown(value, secret=parameter.name in SECRET)
            print(plain(f"{'.'.join(where)}.{flag} = {shown}    # {source}"))
    given_state = "KVLOAD_STATE_DIR" if os.environ.get("KVLOAD_STATE_DIR") else "default"
    print(plain(f"state folder = {state_dir()}    # {given_state}"))
    for variable in API_KEY_VARIABLES:
        print(f"{variable} is {'set' if os.environ.get(variable) else 'not set'}")


def _options(command: Any, where: tuple[str, ...]) -> "Iterator[tuple[tuple[str, ...], Any]]":
    """Every option of a command and of those within it."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            yield where, parameter
    for name, inner in getattr(command, "commands", {}).items():
        yield from _options(inner, (*where, name))


def _shown(value: Any, *, secret: bool) -> str:
    import json
    from enum import Enum

    if value is None or value == "":
        return "-"
    if secret:
        return "***"
    return json.dumps(value.value if isinstance(value, Enum) else value, ensure_ascii=False, default=str)


def _not_taken(command: str, given: "Setting", path: Path | None, content: bytes, named: Path | None) -> str:
    from kvload import trust

    if named is not None or path is None or given.source != str(path):
        return ""
    if given.parameter in trust.NEVER_FROM_A_FILE.get(command, ()):
        return ", not taken from a file"
    guarded = given.parameter in trust.GUARDED or given.option.replace("-", "_") in trust.GUARDED
    return ", refused until kvload config allow" if guarded and not trust.is_allowed(path, content) else ""
