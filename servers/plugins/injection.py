"""A folder for ``PYTHONPATH`` that shows an engine kvload's package and its entry points, and nothing else.

kvload's own environment must not be put on an engine's path: its torch and transformers would hide the engine's. The
folder holds a link to the package and a ``.dist-info`` of its own, from which the engine learns of the plugin.
"""

import contextlib
import os
import uuid
from pathlib import Path

import kvload

ENTRY_POINTS = """\
[vllm.general_plugins]
kvload = kvload.servers.plugins.vllm:register

[sglang.srt.plugins]
kvload = kvload.servers.plugins.sglang:register
"""
"""As in ``pyproject.toml``, whose entry points count where kvload is installed beside the engine."""


def plugin_folder(state: Path) -> Path:
    """Make the folder where it is missing.

    Args:
        state: kvload's state folder.

    Returns:
        what to put in front of the engine's ``PYTHONPATH``.
    """
    package = Path(kvload.__file__).resolve().parent
    folder = state / "plugins" / f"kvload-{kvload.__version__}-{uuid.uuid5(uuid.NAMESPACE_URL, str(package)).hex[:12]}"
    info = folder / f"kvload-{kvload.__version__}.dist-info"
    info.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(info / "METADATA", f"Metadata-Version: 2.1\nName: kvload\nVersion: {kvload.__version__}\n")
    _write(info / "entry_points.txt", ENTRY_POINTS)
    link = folder / "kvload"
    if not link.is_symlink():
        with contextlib.suppress(FileExistsError):  # another launch made it meanwhile
            link.symlink_to(package, target_is_directory=True)
    return folder


def _write(path: Path, text: str) -> None:
    """Replace a file at once: another launch may be reading it."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
