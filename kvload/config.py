"""Settings from ``kvload.toml`` and the environment, below the command line's flags.

Settings that run programs, open ports or carry keys are taken from the working folder's file only if the user allowed
it (:mod:`kvload.trust`).

Order, weakest first: built-in defaults, ``kvload.toml`` in the working folder, ``KVLOAD_*`` variables, flags. A
command's flags stand in a table of the command's name, spelled as on the command line::

    [launch]
    engine = "vllm"
    python = "/opt/vllm/bin/python"

    [replay]
    slo = "ttft=500ms,tpot=50ms"

The same as variables: ``KVLOAD_LAUNCH_ENGINE=vllm``, ``KVLOAD_REPLAY_SLO=...``.
"""

import os
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from kvload.errors import UsageError
from kvload.keys import API_KEY_VARIABLES

CONFIG_NAME = "kvload.toml"


def load_defaults(
    command: str,
    known: set[str],
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    named: Path | None = None,
    key_on_command_line: bool = False,
    lists: Collection[str] = (),
    on_file: Callable[[Path, list[str]], None] = lambda _path, _names: None,
) -> dict[str, Any]:
    """The values a command's options take where no flag is given.

    Args:
        command: the command's name (``launch``).
        known: its option names with underscores (``kv_memory``).
        folder: where to look for ``kvload.toml``; the working folder where None.
        environ: the environment; that of the process where None.
        named: the file the user named with ``--config``: it is believed as it is, and must be there.
        key_on_command_line: the command line carries a key or headers, which go to whatever address is used.
        lists: names of options that may be repeated; a variable gives them one value a line.
        on_file: told the file whose settings are used, and their names.

    Raises:
        UsageError: the file does not parse, names an option the command does not have, or sets what is taken only from
            a file that the user allowed.
    """
    environ = os.environ if environ is None else environ
    path = named or (folder or Path.cwd()) / CONFIG_NAME
    values: dict[str, Any] = {}
    if named is not None or path.is_file():
        try:
            content = path.read_bytes()
            table = tomllib.loads(content.decode("utf-8")).get(command, {})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"cannot be read: {error}", where=str(path)) from error
        if not isinstance(table, dict):
            raise UsageError(f"[{command}] is not a table", where=str(path))
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in known:
                raise UsageError(f"[{command}] has no option '{key}'", where=str(path), hint=f"known: {sorted(known)}")
            values[name] = value
        if named is None:
            from kvload import trust

            for name in trust.NEVER_FROM_A_FILE.get(command, ()):
                values.pop(name, None)
            trust.check(command, values, path, content, key=key_on_command_line or _has_key(command, environ))
        if values:
            on_file(path, [name.replace("_", "-") for name in values])
    prefix = f"KVLOAD_{command.upper()}_"
    for variable, text in environ.items():
        if variable.startswith(prefix):
            name = variable.removeprefix(prefix).lower()
            if name not in known:
                raise UsageError(f"'{command}' has no option '{name}'", where=variable)
            values[name] = text.splitlines() if name in lists else text
    return values


def _has_key(command: str, environ: Mapping[str, str]) -> bool:
    names = (*API_KEY_VARIABLES, f"KVLOAD_{command.upper()}_HEADER", f"KVLOAD_{command.upper()}_API_KEY")
    return any(environ.get(name) for name in names)


def state_dir() -> Path:
    """Where the registry of running servers and their logs live: ``$KVLOAD_STATE_DIR`` or the user's state folder."""
    given = os.environ.get("KVLOAD_STATE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "kvload"
