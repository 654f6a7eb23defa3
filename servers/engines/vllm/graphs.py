"""How many requests at once vLLM's CUDA graphs cover, from its command line: it logs no sizes."""

import json
from typing import Any

from kvload.servers.engines.arguments import flag_value, has_flag

MOST_CAPTURED = 512
"""Largest batch that vLLM captures a graph for by itself."""


def covered(command: tuple[str, ...]) -> int | None:
    """The largest batch it captures: as asked for, else twice the requests that may run, and at most 512.

    Returns:
        0 where it captures none; None where its command does not say.
    """
    if has_flag(command, "--enforce-eager"):
        return 0
    config = _compilation(command)
    if config is None or str(config.get("cudagraph_mode", "")).upper() == "NONE":
        return None if config is None else 0
    said = flag_value(command, "--max-cudagraph-capture-size")
    sizes = [int(said)] if said is not None and said.isdigit() else config.get("cudagraph_capture_sizes")
    known = [size for size in (sizes or [config.get("max_cudagraph_capture_size")]) if isinstance(size, int)]
    if known:
        return max(known)
    running = flag_value(command, "--max-num-seqs")
    return min(2 * int(running), MOST_CAPTURED) if running is not None and running.isdigit() else None


def _compilation(command: tuple[str, ...]) -> dict[str, Any] | None:
    """The compilation's settings; empty where none are given, None where they are in another form than JSON."""
    text = flag_value(command, "-cc") or flag_value(command, "--compilation-config") or "{}"
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
