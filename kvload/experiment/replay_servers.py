"""The servers that a replay is against: what is found out about them first, and what they leave behind."""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from kvload.errors import KvloadError, UsageError
from kvload.experiment.forecast import time_text
from kvload.experiment.options import ReplayOptions
from kvload.private import write_bytes
from kvload.records import ClockOffset, ServerInfo
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.address import Address
    from kvload.servers.lifecycle.places import Server
    from kvload.workloads.schedule.texts import TokenCounter
    from kvload.workloads.traces.trace import TraceRequest

LOG_LIMIT = 16 << 20
"""Bytes of a server's log that are kept with a run."""

CLOCK_OLD_S = 120.0
"""Clocks that were compared longer ago than this may have drifted apart since, and that is said."""

_TEMPLATE_FIELDS = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
"""Fields of a request that change what its chat template makes of it."""


class ReplayServers:
    """One server at an address, or the launched ones of a name; filled by :meth:`find`.

    Args:
        options: which they are.
        headers: sent with every question.
        on_notice: told what the user should know.

    Attributes:
        address: of the only server, or of the first.
        server: the first one that kvload launched; None where it is somebody else's.
        replicas: its equals, which share the requests.
        behind: all but the first of those that may answer, be they replicas or servers behind a router.
        vocabulary: token ids that the model knows; None where that is not known.
    """

    def __init__(self, options: ReplayOptions, headers: Mapping[str, str], on_notice: Callable[[str], None]) -> None:
        self._options = options
        self._headers = headers
        self._on_notice = on_notice
        self.address: Address
        self.server: Server | None = None
        self.replicas: list[Server] = []
        self.behind: list[ServerInfo] = []
        self.vocabulary: int | None = None
        self._model: str | None = None

    @property
    def addresses(self) -> "list[Address]":
        """Of all that requests are sent to."""
        return [self.address, *(one.entry.address for one in self.replicas)]

    @property
    def are_here(self) -> bool:
        """Whether they run on this machine."""
        return self.address.host in {"127.0.0.1", "localhost", "::1"} if self.server is None else self.server.is_here

    def find(self) -> ServerInfo:
        from kvload.servers.lifecycle import registry
        from kvload.servers.lifecycle.places.local import LocalServer
        from kvload.servers.watch import discover

        options = self._options
        if options.address is not None:
            if options.server is not None:
                raise UsageError("give one of them", where="--server, --url")
            self.address = options.address
            info = discover.server_info(self.address, self._headers, model=options.model)
            self.vocabulary = discover.vocab_size(self.address, self._headers)
            self.behind = discover.servers_behind(self.address, self._headers)
        else:
            launched: list[Server] = [options.running] if options.running else []
            if not launched:
                launched += [LocalServer(entry) for entry in registry.find_all(options.server)]
            self.server, *self.replicas = launched
            self.behind = [one.entry.info for one in self.replicas]
            self.address = self.server.entry.address
            self.vocabulary = self.server.entry.vocab_size
            info = self.server.entry.info
        if options.model is not None:
            info = msgspec.structs.replace(info, model=options.model)
        if options.run.max_model_len is not None:
            info = msgspec.structs.replace(info, max_model_len=options.run.max_model_len)
        self._model = info.model
        return info

    def token_counter(self, server: ServerInfo) -> "TokenCounter":
        """Asks the server how long a text is; gives up at the first question that it does not answer."""
        from kvload.servers.watch import discover

        gave_up = False

        def count(request: "TraceRequest") -> int | None:
            nonlocal gave_up
            if gave_up:
                return None
            body: dict[str, Any] = {"model": server.model}
            if request.messages is not None:
                body["messages"] = request.messages
                body |= {name: request.sampling[name] for name in _TEMPLATE_FIELDS if name in request.sampling}
            else:
                body["prompt"] = request.prompt
            found = discover.token_count(self.address, body, self._headers)
            gave_up = found is None
            return found

        return count

    def text_counter(self) -> Callable[[str], int | None]:
        """Asks the server how many tokens a text has by itself, without special ones."""
        from kvload.servers.watch import discover

        def count(text: str) -> int | None:
            body = {"model": self._model, "prompt": text, "add_special_tokens": False}
            return discover.token_count(self.address, body, self._headers)

        return count

    def served_models(self) -> "Collection[str]":
        from kvload.servers.watch import discover

        return discover.served_models(self.address, self._headers)

    def reset_cache(self, server: ServerInfo) -> ServerInfo:
        """Empty the prefix cache of a server we launched: warm-ups and former runs would make it faster than it is."""
        if self.server is None or not self._options.run.reset_cache:
            return server
        from kvload.servers.launcher import reset_prefix_cache

        try:
            done, *others = [reset_prefix_cache(one.entry) for one in self.launched]
        except KvloadError as error:
            self._on_notice(f"the prefix cache was not emptied: {error.message}")
            return server
        self.behind = [
            msgspec.structs.replace(info, prefix_cache=state) for info, state in zip(self.behind, others, strict=True)
        ]
        return msgspec.structs.replace(server, prefix_cache=done)

    @property
    def launched(self) -> "list[Server]":
        """Every server of the run that kvload launched."""
        return [] if self.server is None else [self.server, *self.replicas]

    def notes(self) -> list[str]:
        """What a run's manifest should say of where its servers run: on GPUs of which kinds, by whose clocks."""
        return [*self._unlike(), *self._clocks()]

    def _unlike(self) -> list[str]:
        kinds: dict[str, list[str]] = {}
        for one in self.launched:
            if (kind := one.entry.info.gpu_kind) is not None:
                kinds.setdefault(kind, []).append(one.entry.name)
        if len(kinds) < 2:
            return []
        told = "; ".join(f"{', '.join(names)}: {kind}" for kind, names in kinds.items())
        return [f"the servers' GPUs are not of one kind ({told}): what is said of all together is a mixture"]

    def _clocks(self) -> list[str]:
        now = time.time()
        clocks = [
            f"{info.node} {_clock_text(info.clock, now)}"
            for info in {one.entry.info.node: one.entry.info for one in self.launched}.values()
            if info.node is not None and info.clock is not None
        ]
        if not clocks:
            return []
        return [
            f"the nodes' clocks against the client's: {'; '.join(clocks)}. TTFT and all other latencies are differences"
            " on the sender's own clock and hold none of it; the way over the network is in every TTFT"
        ]

    def is_dead(self) -> str | None:
        """Why the server is certainly gone; None if it is there, or may be."""
        from kvload.errors import ServerError
        from kvload.http import request

        for one in self.launched:
            if (why := one.alive()) is not None:
                return f"{one.entry.name}: {why.message}" if self.replicas else why.message
        try:
            answer = request(self.address, "/health", headers=self._headers, timeout_s=5.0)
        except ServerError as error:
            # a server that is slow to say how it is may be busy
            return None if isinstance(error.__cause__, TimeoutError) else error.message
        return "/health answers 503" if answer.status == 503 else None

    def eviction_counts(self) -> dict[str, Any]:
        """What a method of eviction has done by now, over all servers that were launched, by their logs."""
        from kvload.servers.verification.eviction import counts

        found: dict[str, Any] = {}
        for one in self.launched:
            one.log()
            for name, count in counts(one.entry.log).items():
                found[name] = found.get(name, 0) + count
        return found

    def log_sizes(self) -> list[int]:
        """Bytes that each server that was launched has logged by now."""
        sizes = []
        for one in self.launched:
            one.log()
            sizes.append(one.entry.log.stat().st_size if one.entry.log.exists() else 0)
        return sizes

    def keep_logs(self, run: RunDir, starts: Sequence[int]) -> None:
        """Keep what each of them has logged since, with secrets masked.

        Args:
            starts: what :meth:`log_sizes` said before the run.
        """
        from kvload.servers.lifecycle.masking import known_secrets, mask_text

        for place, (one, start) in enumerate(zip(self.launched, starts, strict=True)):
            one.log()
            if not one.entry.log.exists():
                continue
            with one.entry.log.open("rb") as log:
                log.seek(start)
                text = log.read(LOG_LIMIT).decode("utf-8", "replace")
            write_bytes(run.server_log_path(place), mask_text(text, known_secrets(os.environ)).encode())


def _clock_text(clock: ClockOffset, now: float) -> str:
    """``+0.12 ms (known to 0.50 ms, half of the fastest way there and back)``, and how long ago where it is long."""
    age_s = now - clock.measured_at
    ago = f", measured {time_text(age_s)} before" if age_s > CLOCK_OLD_S else ""
    known = f"known to {clock.doubt_s * 1e3:.2f} ms, half of the fastest way there and back"
    return f"{clock.offset_s * 1e3:+.2f} ms ({known}{ago})"
