"""Starting one server, detached; :mod:`kvload.servers.lifecycle.readiness` waits until it answers."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from kvload.errors import ServerError
from kvload.keys import api_key, bearer
from kvload.records import ServerInfo
from kvload.servers.catalogue.claims import CLAIM_TOKENS
from kvload.servers.engines.arguments import flag_value
from kvload.servers.engines.base import Adapter, Build, LaunchPlan, LaunchRequest
from kvload.servers.host import machine as machines
from kvload.servers.host.devices import kinds, visible
from kvload.servers.lifecycle import masking, registry, rootcause
from kvload.servers.lifecycle.ports import reachable
from kvload.servers.lifecycle.process import TOKEN_VARIABLE, start_mark
from kvload.servers.lifecycle.registry import ServerEntry

KEEPER_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class LaunchEvent:
    """Something to tell the user while a server starts.

    Attributes:
        kind: ``note`` stays on the screen; ``waiting`` and ``progress`` replace each other; ``ready`` ends the start.
        elapsed_s: since the server was started.
    """

    kind: Literal["note", "waiting", "progress", "ready"]
    text: str
    elapsed_s: float = 0.0


OnEvent = Callable[[LaunchEvent], None]


class StartFailedError(ServerError):
    """A server that did not come up.

    Attributes:
        cause: why, as far as it could be recognised.
        log_end: the last lines of its log.
    """

    def __init__(self, message: str, cause: rootcause.RootCause, log_path: Path, log_end: str) -> None:
        self.cause = cause
        self.log_end = log_end
        hint = cause.hint
        if log_end:
            indented = "\n".join(f"    {line}" for line in log_end.splitlines())
            hint = f"{hint or ''}\n  the end of its log:\n{indented}".lstrip("\n ")
        super().__init__(message, where=str(log_path), hint=hint)

    def mask(self, known: Collection[str]) -> None:
        """Mask these secrets, and what looks like one, in everything that is shown of it."""
        self.message = masking.mask_text(self.message, known)
        self.log_end = masking.mask_text(self.log_end, known)
        if self.hint:
            self.hint = masking.mask_text(self.hint, known)


class ServerDiedError(ServerError):
    """A server that came up and died later.

    Attributes:
        cause: why, as far as it could be recognised.
    """

    def __init__(self, message: str, cause: rootcause.RootCause, where: str | None = None) -> None:
        self.cause = cause
        super().__init__(message, where=where, hint=cause.hint)


def new_entry(
    request: LaunchRequest, name: str, adapter: Adapter, build: Build, plan: LaunchPlan, port: int, model_path: str
) -> ServerEntry:
    """The entry of a server that is about to be started."""
    folder = registry.folder()
    logs = folder.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = f"http://{reachable(request.host)}:{port}"
    return ServerEntry(
        name=registry.check_name(name),
        engine=adapter.name,
        host=request.host,
        port=port,
        url=url,
        token=secrets.token_hex(16),
        state="starting",
        info=ServerInfo(
            url=url,
            engine=adapter.name,
            engine_version=build.version,
            model=plan.served_name,
            method=request.method,
            name=name,
            command=masking.mask_command(plan.command),
            env=masking.mask_env(
                {**os.environ, **request.env, **plan.env, **visible(request.gpus)}, without=plan.unset
            ),
            bytes_per_token=plan.claim.bytes_per_token if plan.claim else None,
            claim_tokens=CLAIM_TOKENS if plan.claim else None,
            element_bytes=plan.claim.element_bytes if plan.claim else None,
            prefix_cache=plan.prefix_cache,
            device=build.device,
            gpus=list(request.gpus),
            gpu_kind=_kind_of(request.gpus) if build.device == "cuda" else None,
            tensor_parallel=adapter.ranks(request),
        ),
        log_path=str(logs / f"{name}.log"),
        exit_path=str(folder / f"{name}.exit"),
        launched_at=time.time(),
        launcher_pid=os.getpid(),
        launcher_mark=start_mark(os.getpid()) or "",
        python=build.python,
        model_path=model_path,
        load_format=request.load_format,
        stop_grace_s=adapter.stop_grace_s,
        reset_path=adapter.reset_path if plan.prefix_cache == "reset" else None,
        group=request.group,
        gpu_used_before_mib=machines.gpu_used_mib(request.gpus) if build.device == "cuda" else None,
    )


def _kind_of(gpus: Sequence[str]) -> str | None:
    """What a server's GPUs are; where none was named, what all are that it may look for one among."""
    told = kinds(gpus, os.environ) if gpus else {str(gpu.index): gpu.name for gpu in machines.gpus()}
    found = set(told.values()) if len(told) == len(gpus) or not gpus else set()
    return " and ".join(sorted(found)) or None if len(found) == 1 or gpus else None


def spawn(
    entry: ServerEntry,
    plan: LaunchPlan,
    env: Mapping[str, str],
    cpus: Sequence[int] = (),
    leash: int | None = None,
) -> ServerEntry:
    """Start the command of a plan as a detached session, its output in the entry's log.

    Args:
        cpus: processors it is kept to; any where empty.
        leash: descriptor of a pipe with whose end of file the server ends; None for a server that outlives this
            process.

    Returns:
        the entry with its processes.

    Raises:
        StartFailedError: the command could not be started.
    """
    exit_path = Path(entry.exit_path)
    exit_path.unlink(missing_ok=True)
    keeper = Path(__file__).with_name("keeper.py")
    kept = {name: value for name, value in env.items() if name not in plan.unset}
    full_env = {**kept, **plan.env, **visible(entry.info.gpus), TOKEN_VARIABLE: entry.token}
    options = [f"cpus={','.join(map(str, cpus))}"] if cpus and hasattr(os, "sched_setaffinity") else []
    options += [] if leash is None else [f"leash={leash}"]
    with os.fdopen(os.open(entry.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        subprocess.run(
            [sys.executable, "-I", str(keeper), str(exit_path), *options, "--", *plan.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=full_env,
            pass_fds=() if leash is None else (leash,),
            check=True,
        )
    deadline = time.monotonic() + KEEPER_TIMEOUT_S
    while True:
        state = rootcause.read_exit_state(exit_path)
        if "pid" in state or "error" in state or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    pid, keeper_pid = int(state.get("pid", 0)), int(state.get("keeper_pid", 0))
    if not pid:
        cause = rootcause.recognise("", state)
        raise StartFailedError(cause.message, cause, entry.log, "")
    return msgspec.structs.replace(
        entry,
        pid=pid,
        mark=start_mark(pid) or "gone",
        keeper_pid=keeper_pid,
        keeper_mark=start_mark(keeper_pid) or "gone",
    )


def api_headers(env: Mapping[str, str], engine_args: tuple[str, ...] = ()) -> dict[str, str]:
    """The ``Authorization`` header for a server started with an API key in its arguments or its environment."""
    key = api_key(env, flag_value(engine_args, "--api-key") or env.get("VLLM_API_KEY"))
    return bearer(key) if key else {}
