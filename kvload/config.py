"""Settings from ``kvload.toml`` and the environment, below the command line's flags.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvload.errors import UsageError

CONFIG_NAME = "kvload.toml"


def load_defaults(
    command: str, known: set[str], *, folder: Path | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The values a command's options take where no flag is given.

    Args:
        command: the command's name (``launch``).
        known: its option names with underscores (``kv_memory``).
        folder: where to look for ``kvload.toml``; the working folder where None.
        environ: the environment; that of the process where None.

    Raises:
        UsageError: the file does not parse, or names an option the command does not have.
    """
    path = (folder or Path.cwd()) / CONFIG_NAME
    values: dict[str, Any] = {}
    if path.is_file():
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8")).get(command, {})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"cannot be read: {error}", where=str(path)) from error
        if not isinstance(table, dict):
            raise UsageError(f"[{command}] is not a table", where=str(path))
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in known:
                raise UsageError(f"[{command}] has no option '{key}'", where=str(path), hint=f"known: {sorted(known)}")
            values[name] = value
    prefix = f"KVLOAD_{command.upper()}_"
    for variable, text in (os.environ if environ is None else environ).items():
        if variable.startswith(prefix):
            name = variable.removeprefix(prefix).lower()
            if name not in known:
                raise UsageError(f"'{command}' has no option '{name}'", where=variable)
            values[name] = text
    return values


def state_dir() -> Path:
    """Where the registry of running servers and their logs live: ``$KVLOAD_STATE_DIR`` or the user's state folder."""
    given = os.environ.get("KVLOAD_STATE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "kvload"
