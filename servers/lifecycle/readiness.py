"""Waiting until a server really answers: its process lives, the port is its own, and a token has come."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kvload.address import Address
from kvload.errors import KvloadError, ServerError
from kvload.http import request as http_request
from kvload.servers.engines.base import Adapter
from kvload.servers.lifecycle import listeners, rootcause
from kvload.servers.lifecycle.interrupts import Interrupts
from kvload.servers.lifecycle.process import is_alive, session_members
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import LaunchEvent, OnEvent, StartFailedError
from kvload.servers.watch import discover

POLL_S = 0.1
LOG_START = 4 * 2**20
ENDING_S = 1.0
HEALTH_TIMEOUT_S = 2.0


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
