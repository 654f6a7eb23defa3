"""Who measures on which GPUs of this machine: two experiments on one GPU would measure each other.

An experiment holds a lock for each of its GPUs while it goes on, in kvload's state folder; the system lets go of them
when its process ends, however that ends. Users with state folders of their own do not see each other's, but what is in
use of a GPU's memory shows.
"""

import contextlib
import fcntl
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from kvload.config import state_dir
from kvload.errors import UsageError
from kvload.private import open_file
from kvload.servers.host import machine as machines
from kvload.servers.lifecycle import registry

FOREIGN_MIB = 1024
"""So much memory in use on a GPU that nothing was launched on yet is another program's."""

_SHOWN = 200


@contextlib.contextmanager
def held(gpus: Sequence[str], by: str) -> Iterator[None]:
    """Hold GPUs for as long as the context lasts; nothing is held where none are named.

    Args:
        gpus: by number or UUID.
        by: what they are held for, told to others that want them.

    Raises:
        UsageError: one of them is held by another process.
    """
    with contextlib.ExitStack() as stack:
        for gpu in gpus:
            file = stack.enter_context(open_file(_path(gpu), "a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"GPU {gpu} is being measured on: {_said(file)}",
                    where="--gpus",
                    hint="two experiments on one GPU would measure each other: name others, or wait for its end",
                ) from None
            file.truncate(0)
            file.write(by)
            file.flush()
        yield


def holder(gpu: str) -> str | None:
    """What a GPU is held for by another process; None where it is not."""
    path = _path(gpu)
    if not path.exists():
        return None
    with open_file(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _said(file)
    return None


def occupied(gpus: Sequence[str]) -> list[str]:
    """What else goes on on GPUs, before anything is launched there: servers that kvload knows, and others' memory."""
    said = []
    there = [entry for entry in registry.entries() if registry.state_of(entry) != "dead" and entry.info.node is None]
    for entry in there:
        shared = [gpu for gpu in gpus if gpu in entry.info.gpus]
        if shared:
            said.append(
                f"the server '{entry.name}' is on GPU {', '.join(shared)} as well: what it does is in what is measured"
                f" there (kvload stop {entry.name})"
            )
    taken = {gpu for entry in there for gpu in entry.info.gpus}
    for one in machines.gpus():
        number = str(one.index)
        if number in gpus and number not in taken and one.used_mib is not None and one.used_mib > FOREIGN_MIB:
            said.append(f"{one.used_mib:,} MiB of GPU {number} are in use by other programs, which may be measured too")
    return said


def _path(gpu: str) -> Path:
    folder = state_dir() / "gpus"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{re.sub(r'[^A-Za-z0-9-]+', '-', gpu)}.lock"


def _said(file: IO[str]) -> str:
    file.seek(0)
    return file.read(_SHOWN) or "nothing is known of it"
