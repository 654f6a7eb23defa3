"""Servers on the nodes of a Ray cluster: each is held by an actor whose resources are the server's GPUs.

The actor (:mod:`.ray_actor`) starts the server with kvload's own launcher, on its node, and holds the leash that the
server's keeper ends with: whatever ends the actor (Ray, because the driver is gone; the node; a lease that nobody
renewed) ends the server. What the server logs, and whether it lives, is asked for every few seconds; its metrics and
its answers come over the network as any server's do. Ray schedules, kvload does not. kvload must be installed on every
node, in one version.
"""

import contextlib
import importlib
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from kvload import __version__
from kvload.errors import ServerError, UsageError
from kvload.records import ClockOffset
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.lifecycle.places import Launch, Room
from kvload.servers.lifecycle.places.ray_actor import LOG_AT_ONCE, Look, ServerActor
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.rootcause import RootCause
from kvload.servers.lifecycle.starting import LaunchEvent, OnEvent, StartFailedError
from kvload.terminal import plain

LOOK_EVERY_S = 2.0
LEASE_S = 60.0
"""A server that nobody has asked after for so long is ended by its actor."""

ANSWER_S = 20.0
"""How long an actor may take to answer before its node is taken for lost."""

CONNECT_S = 5.0
CLOCK_ASKED = 9
KIND = "accelerator_type:"
"""What Ray calls a node's kind of GPU begins so, among its resources."""

COMPLAINT = 300
"""Characters of what one of Ray's daemons complains of that are shown."""

ALL_EVENTS = 1 << 30
"""More than there can be: none of them is asked for."""


class RayServer:
    """A server that an actor holds.

    Args:
        actor: the actor's handle.
        node: what its node is called.
        clock: how its node's clock stands to this machine's.
        kind: what its GPUs are, as far as the cluster knows.
    """

    is_here = False

    def __init__(self, actor: Any, node: str, clock: ClockOffset, kind: str | None = None) -> None:
        self._actor = actor
        self._node = node
        self._clock = clock
        self._kind = kind
        self._folder = tempfile.TemporaryDirectory(prefix="kvload-ray-")
        self._copy = Path(self._folder.name) / "server.log"
        self._copy.touch(mode=0o600)
        self._copied = 0
        self._entry: ServerEntry | None = None
        self._dead: RootCause | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name=f"kvload-{node}", daemon=True)

    @property
    def entry(self) -> ServerEntry:
        if self._entry is None:
            raise ServerError("the server is not there yet", where=self._node)
        return self._entry

    def alive(self) -> RootCause | None:
        """What the actor says of it, or that the actor does not answer."""
        self.log()
        return self._dead

    def log(self) -> None:
        """Fetch what its log has grown by."""
        with self._lock:
            while self._dead is None and (look := self._look(ALL_EVENTS)) is not None and len(look.log) == LOG_AT_ONCE:
                pass

    def keep_log_at(self, path: Path) -> None:
        """Move the copy there."""
        with self._lock:
            path.write_bytes(self._copy.read_bytes())
            path.chmod(0o600)
            self._copy = path
            if self._entry is not None:
                self._entry = msgspec.structs.replace(self._entry, log_path=str(path))

    def wait_until_ready(self, on_event: OnEvent) -> None:
        """Wait for the start to end.

        Raises:
            KvloadError: it failed.
        """
        seen, last = 0, LaunchEvent("waiting", f"starting on {self._node}")
        while True:
            look = self._look(seen)
            if look is None:
                raise _lost(self._node, self._dead.message if self._dead is not None else "the node does not answer")
            # it may be told the same again: whoever listens may want to end this
            for event in look.events or [last]:
                on_event(event)
            seen += len(look.events)
            last = next((event for event in reversed(look.events) if event.kind != "note"), last)
            if look.failure is not None:
                raise look.failure.error(self._node)
            if look.entry is not None:
                known = look.entry.info.gpu_kind or self._kind
                info = msgspec.structs.replace(look.entry.info, node=self._node, clock=self._clock, gpu_kind=known)
                self._entry = msgspec.structs.replace(look.entry, info=info, log_path=str(self._copy))
                self._thread.start()
                return
            time.sleep(0.5)

    def stop(self) -> None:
        """End the server, then the actor; where the node is gone there is nothing to end."""
        import ray

        self._over.set()
        failure = None
        try:
            with contextlib.suppress(ray.exceptions.RayError):
                failure = ray.get(self._actor.stop.remote(), timeout=60.0)
                self.log()
        finally:
            with contextlib.suppress(Exception):
                ray.kill(self._actor)
            self._folder.cleanup()
        if failure is not None:
            raise failure.error(self._node)

    def _look(self, events_from: int) -> Look | None:
        import ray

        try:
            look: Look = ray.get(self._actor.look.remote(events_from, self._copied), timeout=ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            self._dead = RootCause("node_lost", f"its node does not answer within {ANSWER_S:g} s")
            return None
        except ray.exceptions.RayError as error:
            self._dead = RootCause("node_lost", f"its node or its actor is gone ({type(error).__name__})")
            return None
        if look.log:
            with self._copy.open("ab") as file:
                file.write(look.log)
            self._copied += len(look.log)
        self._dead = look.dead
        return look

    def _keep_looking(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self.log()


class RayPlace:
    """The nodes of a Ray cluster that runs already.

    Args:
        launch: starts a server on the machine it is called on; found by its name there.
        address: of the cluster's head (``auto`` finds the one that this machine belongs to).

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, launch: Launch, address: str = "auto") -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray = importlib.import_module("ray")
        except ImportError as error:
            raise UsageError(
                "Ray is not installed", where="--place ray", hint="pip install 'kvload[ray]', as on the nodes"
            ) from error
        self._launch = launch
        try:
            _check_address(address, self._ray.util.get_node_ip_address())
            if not self._ray.is_initialized():
                self._ray.init(address=address, namespace="kvload", log_to_driver=False, logging_level="error")
            _keep_off_stdout()
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"no Ray cluster answers at '{address}': {str(error).splitlines()[0]}",
                where="--address",
                hint="start one with 'ray start --head', or give HOST:6379",
            ) from error

    def close(self) -> None:
        """Leave the cluster; every server that was started from here ends."""
        self._ray.shutdown()

    def rooms(self, gpus: int) -> list[Room]:
        """As many as there are GPUs for on the living nodes; where no node has any, one a node."""
        nodes = sorted(
            (node for node in self._ray.nodes() if node["Alive"]),
            key=lambda node: (node["NodeManagerAddress"], node["NodeID"]),
        )
        addresses = [node["NodeManagerAddress"] for node in nodes]
        with_gpus = any(node["Resources"].get("GPU") for node in nodes)
        found = []
        for node in nodes:
            count = int(node["Resources"].get("GPU", 0)) // gpus if with_gpus else 1
            name = f"node {node['NodeManagerAddress']}"
            if addresses.count(node["NodeManagerAddress"]) > 1:
                name += f" ({node['NodeID'][:6]})"
            kind = next((key.removeprefix(KIND) for key in sorted(node["Resources"]) if key.startswith(KIND)), None)
            left = int(node["Resources"].get("GPU", 0)) - count * gpus if with_gpus else 0
            for place in range(count):
                label = name if count == 1 else f"{name} place {place}"
                found.append(Room(node["NodeID"], label, gpus if with_gpus else 0, kind, left if not place else 0))
        if not found:
            raise UsageError(f"no node of the cluster has {gpus} GPUs", where="--place ray", hint="lower --per-arm")
        return found

    def start(self, request: LaunchRequest, on_event: OnEvent, room: Room | None = None) -> RayServer:
        """Start a server on a node."""
        wanted = room or replace(self.rooms(max(1, request.tensor_parallel))[0], node="", name="some node", kind=None)
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        actor = (
            self._ray.remote(ServerActor)
            .options(
                num_cpus=1,
                num_gpus=wanted.gpus,
                max_concurrency=8,
                max_restarts=0,
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node_id=wanted.node, soft=False)
                if wanted.node
                else "DEFAULT",
            )
            .remote(self._launch, LEASE_S)
        )
        try:
            version, address, gpus = self._await_room(actor.node.remote(), wanted.name, on_event)
            clock = self._clock(actor)
        except self._ray.exceptions.RayError as error:
            self._end(actor)
            raise _lost(wanted.name, f"the node is gone or does not take a server ({type(error).__name__})") from error
        except BaseException:
            self._end(actor)
            raise
        server = RayServer(actor, wanted.name if wanted.node else f"node {address}", clock, wanted.kind)
        try:
            if version != __version__:
                raise UsageError(f"its kvload is {version}, this one is {__version__}", where=wanted.name)
            placed = replace(request, host=address, port=None, gpus=tuple(gpus), cpus=())
            self._ray.get(actor.start.remote(placed), timeout=ANSWER_S)
            server.wait_until_ready(on_event)
        except self._ray.exceptions.RayError as error:
            server.stop()
            raise _lost(wanted.name, f"the node is gone ({type(error).__name__})") from error
        except BaseException:
            server.stop()
            raise
        return server

    def _await_room(self, answer: Any, name: str, on_event: OnEvent) -> tuple[str, str, list[str]]:
        """Wait until others have left the room that a server takes: that is theirs to say, and Ray's to queue for."""
        while True:
            with contextlib.suppress(self._ray.exceptions.GetTimeoutError):
                found: tuple[str, str, list[str]] = self._ray.get(answer, timeout=LOOK_EVERY_S)
                return found
            on_event(LaunchEvent("waiting", f"waiting for room on {name}"))

    @contextlib.contextmanager
    def elsewhere(
        self, work: Callable[..., Any], arguments: Mapping[str, Any], count: int, but: str | None
    ) -> Iterator[int]:
        """Run something on other nodes than a server's, for as long as the context lasts.

        Args:
            work: found by its name on the nodes.
            count: how often, the nodes in turn.
            but: name of the room whose node is left out.

        Yields:
            how often it runs: 0 where there is no other node.
        """
        left_out = {room.node for room in self._all_rooms() if room.name == but}
        living = [node for node in self._ray.nodes() if node["Alive"] and node["NodeID"] not in left_out]
        # those without GPUs first: other servers run on the others
        nodes = [node["NodeID"] for node in sorted(living, key=lambda node: node["Resources"].get("GPU", 0.0))]
        if not nodes:
            yield 0
            return
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        remote = self._ray.remote(work)
        tasks = [
            remote.options(
                num_cpus=1,
                max_retries=0,
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(
                    node_id=nodes[number % len(nodes)], soft=True
                ),
            ).remote(**arguments)
            for number in range(count)
        ]
        try:
            yield count
        finally:
            for task in tasks:
                with contextlib.suppress(Exception):
                    self._ray.cancel(task, force=True)

    @property
    def address(self) -> str:
        """This machine's address, as other nodes reach it."""
        found: str = self._ray.util.get_node_ip_address()
        return found

    def _all_rooms(self) -> list[Room]:
        with contextlib.suppress(UsageError):
            return self.rooms(1)
        return []

    def _end(self, actor: Any) -> None:
        """End an actor that holds no server."""
        with contextlib.suppress(Exception):
            self._ray.kill(actor)

    def _clock(self, actor: Any) -> ClockOffset:
        """How a node's wall clock stands to this machine's, from the fastest answers."""
        asked = []
        for _ in range(CLOCK_ASKED):
            before = time.time()
            there = self._ray.get(actor.clock.remote(), timeout=ANSWER_S)
            after = time.time()
            asked.append((after - before, there - (before + after) / 2))
        asked.sort()
        fastest = asked[: max(1, CLOCK_ASKED // 3)]
        return ClockOffset(
            offset_s=statistics.median(offset for _, offset in fastest),
            doubt_s=fastest[0][0] / 2,
            measured_at=time.time(),
        )


def _keep_off_stdout() -> None:
    """Have what Ray's daemons complain of on stderr, a line each.

    Ray prints that on stdout, where results go, with a dump of the daemon's state, and has no setting for it.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    if not hasattr(worker, "print_to_stdstream"):
        return

    def complain(data: Mapping[str, Any], **_: Any) -> None:
        lines = [line for text in data.get("lines", ()) for line in str(text).splitlines() if line.strip()]
        if lines:
            sys.stderr.write(f"ray: {plain(lines[0][:COMPLAINT])}\n")

    worker.print_to_stdstream = complain


def _check_address(address: str, this_machine: str) -> None:
    """Try the port of a cluster's head: Ray itself asks for minutes where nobody listens.

    Args:
        this_machine: its own address, which Ray puts in the place of a loopback one.

    Raises:
        OSError: nobody listens there.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        return
    host = this_machine if host in {"127.0.0.1", "localhost", "::1"} else host
    socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _lost(node: str, why: str) -> StartFailedError:
    return StartFailedError(why, RootCause("node_lost", why, "see 'ray status'"), Path(node), "")
