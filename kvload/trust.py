"""Which settings of a ``kvload.toml`` in the working folder are taken only once its user has allowed the file.

A folder that was downloaded or is shared may hold a ``kvload.toml``. Most of its settings say what to measure. Some
would run a program (``python``, ``env``), open a port to others (``host``), or send the user's key somewhere (``url``):
these are taken only from a file that the user allowed with ``kvload config allow``, as direnv does with ``.envrc``, or
named with ``--config``. The permission is for the content: a changed file has to be allowed again.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

from kvload.config import state_dir
from kvload.errors import UsageError
from kvload.private import make_folder, write_bytes

GUARDED = frozenset({"python", "env", "host", "web_host", "bind", "engine_args", "header", "api_key", "arm_key"})
"""Options that run programs, open ports or carry keys."""

SENDS_KEY = frozenset({"url", "base_url", "arm", "server_url", "endpoint"})
"""Options that name an address; guarded where a key would be sent to it."""

NEVER_FROM_A_FILE = {"doctor": frozenset({"python"})}
"""Options of commands that only look: the working folder's file never makes them execute anything."""


def check(command: str, options: Collection[str], path: Path, content: bytes, *, key: bool) -> None:
    """Refuse a file that sets guarded options and was not allowed.

    Args:
        options: what the file sets for the command, with underscores.
        path: the file.
        content: what it holds.
        key: a key would be sent to the address that a run is given.

    Raises:
        UsageError: it was not; the message names the options.
    """
    guarded = sorted(set(options) & (GUARDED | SENDS_KEY if key else GUARDED))
    if not guarded or is_allowed(path, content):
        return
    names = " and ".join(f"'{name.replace('_', '-')}'" for name in guarded)
    raise UsageError(
        f"[{command}] sets {names}, which is taken only from a file you allowed",
        where=str(path),
        hint=f"read it, then: kvload config allow {path}; or for this call: kvload --config {path} {command} ...",
    )


def allow(path: Path) -> None:
    """Take guarded settings from this file from now on, as long as it stays as it is.

    Raises:
        UsageError: it cannot be read, or the permission cannot be kept.
    """
    try:
        entry = _entry(path, path.read_bytes())
        make_folder(entry.parent)
        write_bytes(entry, f"{path.resolve()}\n".encode())
    except OSError as error:
        raise UsageError(f"cannot be allowed: {error.strerror}", where=str(path)) from error


def deny(path: Path) -> None:
    """Take every permission of this file back, whatever it holds now."""
    folder = _folder()
    for entry in folder.glob("*") if folder.is_dir() else ():
        if entry.read_bytes() == f"{path.resolve()}\n".encode():
            entry.unlink()


def is_allowed(path: Path, content: bytes) -> bool:
    """Whether the user allowed this file with this content."""
    return _entry(path, content).is_file()


def _entry(path: Path, content: bytes) -> Path:
    return _folder() / hashlib.sha256(bytes(path.resolve()) + b"\0" + content).hexdigest()


def _folder() -> Path:
    return state_dir() / "allowed"
