"""Calibrations that were made already: on this boot of this machine, with this client, at about this load.

A comparison replays the same load again and again; its client needs to be calibrated once.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvload import __version__
from kvload.config import state_dir
from kvload.workloads.calibration.calibrate import MAX_RATE, Calibration, Load, calibrate
from kvload.workloads.client.network import machine_id

MAX_AGE_S = 86400.0
_TOKENS_STEP = 32


def rounded(load: Load) -> Load:
    """A load near by, at which many loads are calibrated together: never a smaller one, but for the limits' sake."""
    step = 10 ** (math.floor(math.log10(load.rate)) - 1)
    rate = min(MAX_RATE, round(math.ceil(round(load.rate / step, 6)) * step, 6))
    return replace(load, rate=rate, tokens=math.ceil(load.tokens / _TOKENS_STEP) * _TOKENS_STEP)


def calibrate_once(
    load: Load,
    *,
    workers: int,
    measure: Callable[..., Calibration] = calibrate,
    on_measure: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The calibration at a load like this one, for a manifest: from the state folder, or measured now and kept there.

    Args:
        measure: see :func:`~kvload.workloads.calibration.calibrate.calibrate`.
        on_measure: called before it is measured, which takes some ten seconds.

    Raises:
        ServerError: the mock server did not start.
    """
    load = rounded(load)
    path = _path(load, workers)
    found = _read(path)
    if found is None:
        on_measure()
        found = {"measured_at": time.time(), **measure(load, workers=workers).as_dict()}
        _keep(path, found)
    return found


def _path(load: Load, workers: int) -> Path:
    client = (machine_id(), __version__, platform.python_version(), workers, sorted(os.sched_getaffinity(0)))
    digest = hashlib.sha256(repr((client, load)).encode()).hexdigest()[:20]
    return state_dir() / "calibrations" / f"{digest}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
        age_s = time.time() - float(found["measured_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and 0 <= age_s < MAX_AGE_S else None


def _keep(path: Path, found: dict[str, Any]) -> None:
    """Write it for others and clear away what is too old.

    A state folder that cannot be written is no reason to fail.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            if _read(old) is None:
                old.unlink(missing_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        return
