"""A baseline's figures, kept in kvload's state folder, so that an engine without compression is measured once.

Launches beside each other, in any process, take turns: one measures and the others wait for its figures.
"""

import contextlib
import fcntl
import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kvload.config import state_dir
from kvload.servers.engines.base import Build, LaunchRequest
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.lifecycle.starting import LaunchEvent, OnEvent


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a baseline: its pool in tokens, and two measurements of the same scores."""

    pool_tokens: int | None
    scoring: str
    text_tokens: int
    own: list[float]
    again: list[float]
    other: list[float]


def baseline_path(request: LaunchRequest, build: Build, model: ModelFacts) -> Path:
    """Where the baseline's figures are kept: the name is made of everything they depend on."""
    key = {
        "engine": build.engine,
        "version": build.version,
        "device": build.device,
        "model": model.digest or model.name,
        "load_format": request.load_format,
        "kv_memory": request.kv_memory,
        "max_model_len": request.max_model_len,
        "tensor_parallel": request.tensor_parallel,
        "engine_args": list(request.engine_args),
        "env": dict(sorted(request.env.items())),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return state_dir() / "baselines" / f"{build.engine}-{digest}.json"


def load_baseline(path: Path) -> Baseline | None:
    """The figures kept there; None where there are none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except (OSError, msgspec.MsgspecError):
        return None


def keep(path: Path, baseline: Baseline) -> None:
    """Write a baseline's figures where :func:`load_baseline` finds them, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Servers that start beside each other may each measure it.
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
    temporary.write_bytes(msgspec.json.encode(baseline))
    temporary.replace(path)


@contextlib.contextmanager
def turn(path: Path) -> Iterator[bool]:
    """Whether it is this launch that measures a baseline, of all that start beside each other, in any process."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def await_baseline(path: Path, on_event: OnEvent) -> Baseline | None:
    """The baseline's figures, once whoever measures them is done; None where that came to nothing."""
    while (known := load_baseline(path)) is None:
        with turn(path) as ours:
            if ours:
                return load_baseline(path)
        on_event(LaunchEvent("waiting", "verification: the baseline is measured beside"))
        time.sleep(0.2)
    return known
