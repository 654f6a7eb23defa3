"""Files and folders for their owner alone: run folders hold prompts and answers."""

import os
from pathlib import Path
from typing import IO, Any

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, and the folders above it as usual; one that is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def open_file(path: Path, mode: str, **options: Any) -> IO[Any]:
    """As :func:`open`; a file that is made is its owner's alone, whatever the umask.

    Raises:
        OSError: as ``open``.
    """
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, FILE_MODE), **options)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a private file.

    Raises:
        OSError: it cannot be written.
    """
    with open_file(path, "wb") as file:
        file.write(data)
