"""Launching and stopping servers: choose the engine, check what is asked of it, start it, verify it, end it whole."""

import functools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

import msgspec

from kvload.errors import ServerError, UsageError
from kvload.http import request as http_request
from kvload.servers.engines.base import Adapter, Build, LaunchPlan, LaunchRequest, adapter
from kvload.servers.engines.choice import choose
from kvload.servers.host import machine as machines
from kvload.servers.host import model_facts, model_source
from kvload.servers.host.devices import usable
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.lifecycle import interrupts, masking, registry
from kvload.servers.lifecycle.places import Place, Server
from kvload.servers.lifecycle.places.local import LocalPlace
from kvload.servers.lifecycle.ports import check_port, free_port
from kvload.servers.lifecycle.readiness import wait_until_ready
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import (
    LaunchEvent,
    OnEvent,
    StartFailedError,
    api_headers,
    new_entry,
    spawn,
)
from kvload.servers.lifecycle.stopping import StopReport, stop
from kvload.servers.verification.verify import launch_verified

__all__ = [
    "LaunchEvent",
    "LaunchRequest",
    "StartFailedError",
    "StopReport",
    "api_headers",
    "launch",
    "launch_replicas",
    "place_replicas",
    "reset_prefix_cache",
    "stop",
]

PORT_TRIES = 5

Started = TypeVar("Started")


def launch(request: LaunchRequest, on_event: OnEvent, leash: int | None = None) -> ServerEntry:
    """Start a server and wait until it has produced a token (and passed its verification, where asked for).

    Whatever interrupts or fails it, no process of the server is left behind.

    Args:
        request: what to start.
        on_event: told what is happening, from this thread.
        leash: descriptor of a pipe with whose end of file the server ends; None for one that outlives this process.

    Raises:
        UsageError: something is asked that cannot be; nothing was started.
        ServerError: the server did not come up, or its verification failed.
    """
    with interrupts.kept_back() as asked:
        with asked.heeded():
            machine = _machine_of(request)
            env = {**os.environ, **request.env}
            chosen = choose(request, env, machine)
            if request.engine == "auto":
                on_event(LaunchEvent("note", f"engine {chosen.build.engine}: {chosen.reason}"))
            made = adapter(chosen.build.engine)
            request = replace(request, engine=made.name)
            if len(request.gpus) > (width := made.width(request)):
                text = f"it is given {len(request.gpus)} GPUs and is spread over {width}: --tensor-parallel spreads it"
                on_event(LaunchEvent("note", text))
            model = model_source.locate(
                _model(request),
                env,
                lambda text: on_event(LaunchEvent("note", text)),
                engine_reads_gguf=made.reads_gguf,
            )

        def start(wanted: LaunchRequest) -> ServerEntry:
            return _start(wanted, made, chosen.build, model, machine, on_event, leash)

        if not request.verify:
            return start(request)
        plan = made.plan(request, request.port or 0, chosen.build, model, machine)
        return launch_verified(request, made, chosen.build, model, plan, start, on_event)


def launch_replicas(request: LaunchRequest, count: int, on_event: OnEvent) -> list[ServerEntry]:
    """Start equal servers under one name, at the same time, each on its part of the GPUs; all of them or none.

    Args:
        request: one of them; its GPUs are shared out, its port is the first one's, its name all of theirs.
        count: how many.
        on_event: told what is happening, one event at a time, from threads.

    Raises:
        UsageError: there are too few GPUs.
        ServerError: one of them did not come up.
    """
    requests = replica_requests(request, count)
    used = {gpu for wanted in requests for gpu in wanted.gpus}
    if left := [gpu for gpu in request.gpus if gpu not in used]:
        text = f"GPU {', '.join(left)} of those named: unused, since {count} replicas take {len(used)}"
        on_event(LaunchEvent("note", text))
    return _all_or_none({str(wanted.name): functools.partial(launch, wanted) for wanted in requests}, stop, on_event)


def place_replicas(place: Place, request: LaunchRequest, names: Sequence[str], on_event: OnEvent) -> dict[str, Server]:
    """Start equal servers on a cluster, at the same time, wherever there is room; all of them or none.

    Args:
        request: one of them; names on the nodes are made up there.
        names: what each is called here.
        on_event: told what is happening, one event at a time, from threads.

    Returns:
        the servers by these names.

    Raises:
        UsageError: the cluster has no room for so many, whoever is in it now.
        ServerError: one of them did not come up.
    """
    rooms = len(place.rooms(max(1, request.tensor_parallel)))
    if rooms < len(names):
        raise UsageError(f"the cluster has room for {rooms} of {len(names)} servers", where="--replicas")
    anywhere = replace(request, name=None, group=None)
    start = functools.partial(place.start, anywhere)
    return dict(
        zip(names, _all_or_none(dict.fromkeys(names, start), lambda server: server.stop(), on_event), strict=True)
    )


def _all_or_none(
    starts: Mapping[str, Callable[[OnEvent], Started]], end: Callable[[Started], object], on_event: OnEvent
) -> list[Started]:
    """Start servers at the same time; where one fails or the user interrupts, end those that came up."""
    lock, ended = threading.Lock(), threading.Event()

    def start(name: str) -> Started:
        def tell(event: LaunchEvent) -> None:
            if ended.is_set():
                raise ServerError(f"'{name}' was not needed any more: another replica failed")
            with lock:
                on_event(replace(event, text=f"{name}: {event.text}"))

        try:
            return starts[name](tell)
        except BaseException:
            ended.set()
            raise

    with interrupts.kept_back() as asked, ThreadPoolExecutor(len(starts)) as pool:
        started = [pool.submit(start, name) for name in starts]
        try:
            with asked.heeded():
                wait(started)
        except BaseException:
            ended.set()
            raise
        finally:
            errors = [error for each in started if (error := each.exception()) is not None]
            if errors or ended.is_set():
                for each in started:
                    if each.exception() is None:
                        end(each.result())
        if errors:
            raise errors[0]
        return [each.result() for each in started]


def replica_requests(request: LaunchRequest, count: int) -> list[LaunchRequest]:
    """What each of several replicas is asked to be.

    Raises:
        UsageError: there are too few GPUs for all of them.
    """
    machine = machines.look()
    env = {**os.environ, **request.env}
    made = adapter(choose(request, env, machine).build.engine)
    ranks = made.width(replace(request, gpus=()))
    gpus = request.gpus or (usable(env) if machine.gpus and not made.in_kvload else ())
    if gpus and len(gpus) < ranks * count:
        raise UsageError(
            f"{count} replicas take {ranks * count} GPUs, and {len(gpus)} are there", where="--replicas, --gpus"
        )
    group = request.name or _free_name(replace(request, engine=made.name))
    if registry.load(group) is not None or registry.members(group):
        raise registry.NameTakenError(
            f"a server named '{group}' is there already", where="--name", hint=f"kvload stop {group}"
        )
    return [
        replace(
            request,
            name=f"{group}.{number}",
            group=group,
            port=None if request.port is None else request.port + number,
            gpus=gpus[number * ranks : (number + 1) * ranks],
        )
        for number in range(count)
    ]


def reset_prefix_cache(entry: ServerEntry) -> str:
    """Empty a server's prefix cache, so that a run does not live off the one before.

    Returns:
        ``off`` where it has none, ``reset`` where it was emptied, ``on`` where it has one that could not be emptied.
    """
    if entry.info.prefix_cache == "off":
        return "off"
    if entry.reset_path is None:
        return "on"
    try:
        answer = http_request(entry.address, entry.reset_path, method="POST", headers=api_headers(os.environ))
    except ServerError:
        return "on"
    return "reset" if answer.ok else "on"


def _start(
    request: LaunchRequest,
    made: Adapter,
    build: Build,
    model: ModelFacts,
    machine: Machine,
    on_event: OnEvent,
    leash: int | None,
) -> ServerEntry:
    for attempt in range(PORT_TRIES):
        try:
            return _start_once(request, made, build, model, machine, on_event, leash)
        except registry.PortHeldError:
            # A launch beside this one was given the same free port.
            if request.port is not None or attempt == PORT_TRIES - 1:
                raise
        except registry.NameTakenError:
            # or made up the same name
            if request.name is not None or attempt == PORT_TRIES - 1:
                raise
        except StartFailedError as error:
            # Between finding a free port and listening on it, another program may have taken it.
            if error.cause.kind != "port" or request.port is not None or attempt == PORT_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _start_once(
    request: LaunchRequest,
    made: Adapter,
    build: Build,
    model: ModelFacts,
    machine: Machine,
    on_event: OnEvent,
    leash: int | None,
) -> ServerEntry:
    if request.port is not None:
        check_port(request.host, request.port)
    port = request.port or free_port(request.host)
    plan = made.plan(request, port, build, model, machine)
    for note in plan.notes:
        on_event(LaunchEvent("note", note))
    name = request.name or _free_name(request)
    entry = new_entry(request, name, made, build, plan, port, str(model.folder or model.name))
    entry = msgspec.structs.replace(entry, vocab_size=model.vocab_size)
    with interrupts.kept_back() as asked:
        registry.claim(entry)
        try:
            entry = spawn(entry, plan, {**os.environ, **request.env}, request.cpus, leash)
            registry.save(entry)
            entry = wait_until_ready(
                entry,
                made,
                request.timeout_s or made.start_timeout_s,
                api_headers({**os.environ, **request.env}, request.engine_args),
                on_event,
                asked,
            )
            if entry.vocab_size is None:
                # The engine has fetched the model by now: what it is can be read where it was put.
                entry = msgspec.structs.replace(entry, vocab_size=model_facts.read(model.name).vocab_size)
            registry.save(entry)
            on_event(LaunchEvent("ready", _ready_text(entry), time.time() - entry.launched_at))
            asked.pause(0)
        except BaseException as error:
            stop(entry)
            if isinstance(error, StartFailedError):
                # Engines print their arguments and their environment when they fail.
                error.mask(masking.known_secrets({**os.environ, **request.env, **plan.env}, plan.command))
            raise
    return entry


def _machine_of(request: LaunchRequest) -> Machine:
    """This machine, of its GPUs those that the server may use: what the others cannot do does not bear on it."""
    machine = machines.look()
    named = tuple(gpu for gpu in machine.gpus if str(gpu.index) in request.gpus)
    return replace(machine, gpus=named) if named else machine


def place_of(name: str, address: str = "auto") -> Place:
    """Where servers are started: ``local``, or ``ray``.

    Args:
        address: of a cluster's head.

    Raises:
        UsageError: there is no such place.
    """
    if name == "local":
        return LocalPlace(launch)
    if name == "ray":
        from kvload.servers.lifecycle.places.ray import RayPlace

        return RayPlace(launch, address)
    raise UsageError(f"'{name}' is neither local nor ray", where="--place")


def _ready_text(entry: ServerEntry) -> str:
    pool = f", {entry.info.pool_tokens:,} tokens of KV cache" if entry.info.pool_tokens else ""
    info = entry.info
    threads = None if info.threads is None else f"{info.threads} thread{'s' if info.threads > 1 else ''}"
    computes = "".join(f", {part}" for part in (info.dtype, threads) if part)
    return f"{entry.name} is ready on {entry.url}: {info.model}, method {info.method}{computes}{pool}"


def _model(request: LaunchRequest) -> str:
    if request.model is not None:
        return request.model
    from kvload.servers.probe import MODEL_DIR

    if not (MODEL_DIR / "config.json").is_file():
        raise UsageError("the probe model is not installed", where=str(MODEL_DIR), hint="name a MODEL")
    return str(MODEL_DIR)


def _free_name(request: LaunchRequest) -> str:
    """``vllm-fp8-e4m3``, with a number where a living server has that name."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{request.engine}-{request.method}")[:56]
    for number in range(1, 1000):
        name = plain if number == 1 else f"{plain}-{number}"
        old = registry.load(name)
        if old is None or registry.state_of(old) == "dead":
            return name
    raise UsageError("too many servers of this kind", where="--name")


def plan_for(request: LaunchRequest) -> tuple[LaunchPlan, Build]:
    """The command a request leads to, with all checks made and nothing started.

    Raises:
        UsageError: as :func:`launch`.
    """
    machine = _machine_of(request)
    env = {**os.environ, **request.env}
    chosen = choose(request, env, machine)
    made = adapter(chosen.build.engine)
    request = replace(request, engine=made.name)
    model = model_source.locate(_model(request), env, lambda _: None, engine_reads_gguf=made.reads_gguf)
    return made.plan(request, request.port or 0, chosen.build, model, machine), chosen.build
