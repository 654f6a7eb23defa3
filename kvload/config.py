"""Settings from ``kvload.toml`` and the environment, below the command line's flags.

Settings that run programs, open ports or carry keys are taken from the working folder's file only if the user allowed
it (:mod:`kvload.trust`).

Order, weakest first: built-in defaults, ``kvload.toml`` in the working folder, ``KVLOAD_*`` variables, flags. A
command's options stand in a table of the command's name, spelled as on the command line; those of a command of a group
in a table of both names::

    [launch]
    engine = "vllm"
    python = "/opt/vllm/bin/python"

    [replay]
    slo = "ttft=500ms,tpot=50ms"
    num-prompts = 500

    [traces.convert]
    format = "mooncake"

The same as variables: ``KVLOAD_LAUNCH_ENGINE=vllm``, ``KVLOAD_REPLAY_SLO=...``, ``KVLOAD_TRACES_CONVERT_FORMAT=...``.
``kvload config`` prints what is in force, and from where.
"""

import difflib
import os
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvload.errors import UsageError
from kvload.keys import API_KEY_VARIABLES

CONFIG_NAME = "kvload.toml"


@dataclass(frozen=True)
class Known:
    """What the table of a command may hold.

    Attributes:
        options: name on the command line, without its dashes in front (``num-prompts``), to the parameter it sets
            (``limit``); several names may set the same one.
        lists: parameters that may be repeated; a variable gives them one value a line.
        commands: the same of each command, where this is a group of them.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    lists: Collection[str] = ()
    commands: Mapping[str, "Known"] = field(default_factory=dict)

    @classmethod
    def of(cls, *names: str, lists: Collection[str] = ()) -> "Known":
        """Of options whose parameters are called as they are on the command line, but for dashes."""
        return cls({name: name.replace("-", "_") for name in names}, lists)


@dataclass(frozen=True)
class Setting:
    """One value that was set for a command.

    Attributes:
        command: the command, and the one within a group.
        option: the option's name on the command line, without its dashes.
        parameter: the parameter it sets.
        value: what it is set to.
        source: the file or the variable.
    """

    command: tuple[str, ...]
    option: str
    parameter: str
    value: Any
    source: str


def load_defaults(
    command: str,
    known: Known,
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    named: Path | None = None,
    key_on_command_line: bool = False,
    tables: Collection[str] = (),
    on_file: Callable[[Path, list[str]], None] = lambda _path, _names: None,
) -> dict[str, Any]:
    """The values a command's options take where no flag is given.

    Args:
        command: the command's name (``launch``).
        known: what its table may hold.
        folder: where to look for ``kvload.toml``; the working folder where None.
        environ: the environment; that of the process where None.
        named: the file the user named with ``--config``: it is believed as it is, and must be there.
        key_on_command_line: the command line carries a key or headers, which go to whatever address is used.
        tables: names of all commands; a table of the file that has another name is an error. Not checked if empty.
        on_file: told the file whose settings are used, and their names.

    Returns:
        values by parameter; those of a group's commands by command and parameter.

    Raises:
        UsageError: the file does not parse, names a command or an option that does not exist, or sets what is taken
            only from a file that the user allowed.
    """
    environ = os.environ if environ is None else environ
    path = config_path(folder, named)
    found: list[Setting] = []
    if path is not None:
        content = _read(path)
        found = list(file_settings(command, known, content, path, tables))
        if named is None:
            from kvload import trust

            never = trust.NEVER_FROM_A_FILE.get(command, ())
            found = [setting for setting in found if setting.parameter not in never]
            names = {setting.option.replace("-", "_") for setting in found} | {setting.parameter for setting in found}
            trust.check(command, names, path, content, key=key_on_command_line or _has_key(command, environ))
        if found:
            on_file(path, [".".join((*setting.command[1:], setting.option)) for setting in found])
    values: dict[str, Any] = {}
    for setting in (*found, *variable_settings(command, known, environ)):
        place = values
        for name in setting.command[1:]:
            place = place.setdefault(name, {})
        place[setting.parameter] = setting.value
    return values


def config_path(folder: Path | None = None, named: Path | None = None) -> Path | None:
    """The file that settings are taken from: the one named, else the working folder's, if there is one."""
    path = named or (folder or Path.cwd()) / CONFIG_NAME
    return path if named is not None or path.is_file() else None


def file_settings(
    command: str, known: Known, content: bytes, path: Path, tables: Collection[str] = ()
) -> Iterator[Setting]:
    """What a file sets for a command.

    Args:
        command, known, tables: see :func:`load_defaults`.
        content: what the file holds.
        path: where it is.

    Raises:
        UsageError: it does not parse, or names a command or an option that does not exist.
    """
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    for name, table in document.items():
        if tables and name not in tables:
            what = f"there is no command '{name}'" if isinstance(table, dict) else f"'{name}' stands outside a table"
            raise UsageError(what, where=str(path), hint=_hint(name, tables, "tables are"))
    yield from _table_settings((command,), known, document.get(command, {}), path)


def variable_settings(command: str, known: Known, environ: Mapping[str, str]) -> Iterator[Setting]:
    """What variables set for a command.

    Raises:
        UsageError: one names an option that does not exist.
    """
    prefix = f"KVLOAD_{command.upper()}_"
    for variable, text in environ.items():
        if not variable.startswith(prefix):
            continue
        names: tuple[str, ...] = (command,)
        table, rest = known, variable.removeprefix(prefix).lower().replace("_", "-")
        for name, inner in known.commands.items():
            if rest.startswith(f"{name}-"):
                names, table, rest = (command, name), inner, rest.removeprefix(f"{name}-")
                break
        parameter = table.options.get(rest)
        if parameter is None:
            hint = _hint(rest, table.options or table.commands, "known:")
            raise UsageError(f"'{' '.join(names)}' has no option '{rest}'", where=variable, hint=hint)
        value: Any = text.splitlines() if parameter in table.lists else text
        yield Setting(names, rest, parameter, value, variable)


def _table_settings(command: tuple[str, ...], known: Known, table: Any, path: Path) -> Iterator[Setting]:
    title = f"[{'.'.join(command)}]"
    if not isinstance(table, dict):
        raise UsageError(f"{title} is not a table", where=str(path))
    given: dict[str, str] = {}
    for key, value in table.items():
        option = key.replace("_", "-")
        if key in known.commands:
            yield from _table_settings((*command, key), known.commands[key], value, path)
            continue
        parameter = known.options.get(option)
        if parameter is None:
            hint = _hint(option, known.options or [f"{title[:-1]}.{name}]" for name in known.commands], "known:")
            raise UsageError(f"{title} has no option '{key}'", where=str(path), hint=hint)
        if parameter in given:
            raise UsageError(f"{title} gives '{given[parameter]}' and '{key}', which are one option", where=str(path))
        given[parameter] = key
        yield Setting(command, option, parameter, value, str(path))


def _hint(name: str, names: Collection[str], lead: str) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"{lead} {', '.join(sorted(names))}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _has_key(command: str, environ: Mapping[str, str]) -> bool:
    names = (*API_KEY_VARIABLES, f"KVLOAD_{command.upper()}_HEADER", f"KVLOAD_{command.upper()}_API_KEY")
    return any(environ.get(name) for name in names)


def cache_dir() -> Path:
    """Where what can be made again is kept (converted models): ``$KVLOAD_CACHE_DIR`` or the user's cache folder."""
    given = os.environ.get("KVLOAD_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvload"


def state_dir() -> Path:
    """Where the registry of running servers and their logs live: ``$KVLOAD_STATE_DIR`` or the user's state folder."""
    given = os.environ.get("KVLOAD_STATE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "kvload"
