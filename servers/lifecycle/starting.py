"""Starting one server, detached, and waiting until it really answers."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from kvload.address import Address
from kvload.errors import KvloadError, ServerError, UsageError
from kvload.http import request as http_request
from kvload.keys import api_key, bearer
from kvload.records import ServerInfo
from kvload.servers.catalogue.claims import CLAIM_TOKENS
from kvload.servers.engines.arguments import flag_value
from kvload.servers.engines.base import Adapter, Build, LaunchPlan, LaunchRequest
from kvload.servers.host.devices import visible
from kvload.servers.host.machine import gpu_used_mib
from kvload.servers.lifecycle import listeners, masking, registry, rootcause
from kvload.servers.lifecycle.interrupts import Interrupts
from kvload.servers.lifecycle.process import TOKEN_VARIABLE, is_alive, session_members, start_mark
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.watch import discover

POLL_S = 0.1
LOG_START = 4 * 2**20
ENDING_S = 1.0
KEEPER_TIMEOUT_S = 15.0
HEALTH_TIMEOUT_S = 2.0


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


def new_entry(
    request: LaunchRequest, name: str, adapter: Adapter, build: Build, plan: LaunchPlan, port: int, model_path: str
) -> ServerEntry:
    """The entry of a server that is about to be started."""
    folder = registry.folder()
    logs = folder.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = f"http://{_reachable(request.host)}:{port}"
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
        gpu_used_before_mib=gpu_used_mib(request.gpus) if build.device == "cuda" else None,
    )


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


def wait_until_ready(
    entry: ServerEntry,
    adapter: Adapter,
    timeout_s: float,
    headers: Mapping[str, str],
    on_event: OnEvent,
    interrupts: Interrupts,
) -> ServerEntry:
    """Wait until the server is healthy and has produced a token.

    Args:
        interrupts: they end the wait.

    Returns:
        the entry with what the server says about itself.

    Raises:
        StartFailedError: it ended, or the time is up.
        KeyboardInterrupt: the user does not want it any more.
    """
    started = time.monotonic()
    log = LogFollower(entry.log)
    text = "waiting for the process"
    while True:
        elapsed_s = time.monotonic() - started
        for line in log.new_lines():
            text = adapter.progress(line) or text
        on_event(LaunchEvent("progress", text, elapsed_s))
        if not is_alive(entry.pid, entry.mark):
            raise _failed(entry, "the server ended while it was starting")
        if elapsed_s > timeout_s:
            raise _timed_out(entry, timeout_s, f"it was at: {text}")
        if _healthy(entry.address, headers):
            if _is_answered_by_another(entry):
                raise _port_is_anothers(entry)
            break
        interrupts.pause(POLL_S)
    on_event(LaunchEvent("waiting", "waiting for a first token", time.monotonic() - started))
    try:
        model = discover.first_model(entry.address, headers)
        vocabulary = entry.vocab_size or model.get("vocab_size")
        with interrupts.heeded():
            first_token(entry, vocabulary, headers, timeout_s=max(5.0, timeout_s - (time.monotonic() - started)))
        said = discover.server_info(entry.address, headers)
    except KvloadError as error:
        if _ends_soon(entry):
            raise _failed(entry, "the server ended at its first request") from error
        cause = _cause_of_refusal(entry, error)
        raise StartFailedError(
            f"the server answers /health but produced no token: {cause.message}", cause, entry.log, _log_end(entry)
        ) from error
    if not is_alive(entry.pid, entry.mark):
        raise _failed(entry, "another server answers on its port, and it ended")
    if _is_answered_by_another(entry):
        raise _port_is_anothers(entry)
    info = msgspec.structs.replace(
        entry.info,
        max_model_len=said.max_model_len,
        pool_tokens=said.pool_tokens,
        engine_version=entry.info.engine_version or said.engine_version,
        device=said.device or entry.info.device,
        dtype=said.dtype,
        threads=said.threads,
        kernels=said.kernels,
        graph_streams=adapter.graph_streams(entry.info.command or [], _log_start(entry)),
    )
    if info.prefix_cache != "reset" and said.prefix_cache is not None:
        info = msgspec.structs.replace(info, prefix_cache=said.prefix_cache)
    return msgspec.structs.replace(
        entry, state="ready", info=info, vocab_size=vocabulary if isinstance(vocabulary, int) else None
    )


def _log_start(entry: ServerEntry) -> str:
    """What a server's log held when it first answered, a few megabytes at most."""
    try:
        with entry.log.open("rb") as file:
            return file.read(LOG_START).decode("utf-8", "replace")
    except OSError:
        return ""


def first_token(entry: ServerEntry, vocabulary: int | None, headers: Mapping[str, str], *, timeout_s: float) -> None:
    """Make the server generate one token.

    Raises:
        ServerError: it does not.
    """
    middle = (vocabulary or 0) // 2
    prompt: Any = [middle, middle + 1, middle + 2] if middle > 2 else "Hello"
    body = {"model": entry.info.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    answer = http_request(entry.address, "/v1/completions", body=body, headers=headers, timeout_s=timeout_s)
    if not answer.ok:
        raise ServerError(f"/v1/completions answered {answer.status}: {answer.text()[:300]}", where=entry.url)
    usage = answer.json().get("usage") or {}
    if not usage.get("completion_tokens"):
        raise ServerError("the answer to a first request holds no token", where=entry.url)


def api_headers(env: Mapping[str, str], engine_args: tuple[str, ...] = ()) -> dict[str, str]:
    """The ``Authorization`` header for a server started with an API key in its arguments or its environment."""
    key = api_key(env, flag_value(engine_args, "--api-key") or env.get("VLLM_API_KEY"))
    return bearer(key) if key else {}


class LogFollower:
    """Reads the lines that were added to a log since the last look."""

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._rest = b""

    def new_lines(self, limit: int = 2**20) -> list[str]:
        """Whole lines that are new; carriage returns, with which progress bars redraw themselves, end a line too."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(limit)
        except OSError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


def free_port(host: str) -> int:
    """A port that nobody listens on now.

    Raises:
        UsageError: the address is none of this machine's.
    """
    return _try_port(host, 0)


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        UsageError: it is taken, or not allowed.
    """
    _try_port(host, port)


def _try_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                where="--port" if port else "--host",
                hint="leave --port out for a free one" if port else None,
            ) from error
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    """The address to ask a server that listens on ``host``."""
    plain = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  compared, not bound
    return f"[{plain}]" if ":" in plain else plain


def _healthy(address: Address, headers: Mapping[str, str]) -> bool:
    try:
        return http_request(address, "/health", headers=headers, timeout_s=HEALTH_TIMEOUT_S).ok
    except ServerError:
        return False


def _is_answered_by_another(entry: ServerEntry) -> bool:
    """Whether a socket of some other process answers at the server's address; False where this system does not tell."""
    pids = [process.pid for process in session_members(entry.anchors, entry.token)]
    host = urlsplit(entry.url).hostname or entry.host
    return listeners.belongs_to(pids, host, entry.port) is False


def _port_is_anothers(entry: ServerEntry) -> StartFailedError:
    cause = rootcause.RootCause(
        "port",
        f"another process answers on port {entry.port}",
        "choose another --port, or leave it out for a free one",
    )
    return StartFailedError(f"the server is not the one on its port: {cause.message}", cause, entry.log, "")


def _failed(entry: ServerEntry, what: str) -> StartFailedError:
    # The keeper writes the end down a moment after it happened.
    deadline = time.monotonic() + 2.0
    while "ended_at" not in (state := rootcause.read_exit_state(Path(entry.exit_path))):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    cause = rootcause.recognise(rootcause.read_tail(entry.log), state)
    return StartFailedError(f"{what}: {cause.message}", cause, entry.log, _log_end(entry))


def _ends_soon(entry: ServerEntry) -> bool:
    """Whether the process is gone, or is just going: a dying server's connections break before its process ends."""
    deadline = time.monotonic() + ENDING_S
    while is_alive(entry.pid, entry.mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _cause_of_refusal(entry: ServerEntry, error: KvloadError) -> rootcause.RootCause:
    """Why a living server fails at a request: what its log says of it, or else what it answered."""
    time.sleep(0.5)  # the log follows the answer
    cause = rootcause.recognise(rootcause.read_tail(entry.log))
    return rootcause.RootCause("answer", error.message, error.hint) if cause.kind == "exit" else cause


def _timed_out(entry: ServerEntry, timeout_s: float, where_it_was: str) -> StartFailedError:
    cause = rootcause.RootCause("timeout", where_it_was, "give it longer with --timeout")
    return StartFailedError(
        f"the server was not ready after {timeout_s:.0f} s; {where_it_was}", cause, entry.log, _log_end(entry)
    )


def _log_end(entry: ServerEntry) -> str:
    return rootcause.last_lines(rootcause.read_tail(entry.log))
