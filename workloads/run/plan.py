"""A run as it is handed to the Locust processes: settings in one file, each worker's share of the schedule in another.

The shares are spooled to the run folder (``plan/``), so that a schedule with long prompts is held once by each worker
that sends it, and so that whatever kills a worker leaves behind what it was to do.
"""

import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from kvload.address import Address
from kvload.balancing import Balancer, Policy
from kvload.errors import MachineError, UsageError
from kvload.private import make_folder, open_file, write_bytes
from kvload.units import request_limits
from kvload.workloads.client.http1 import RequestHeads
from kvload.workloads.schedule.request import PlannedRequest

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class Sending:
    """How requests are sent, whatever they are and wherever they go.

    Attributes:
        workers: processes that send, on this machine.
        timeout_s: a request's limit; None for none.
        drain_s: how long answers may still come in after the last request was sent.
        max_concurrency: most requests in flight (open loop).
        concurrency: closed loop with so many in flight.
        warmups: requests sent before the run, which are no part of it.
        policy: which of several equal servers a request goes to.
    """

    workers: int = 1
    timeout_s: float | None = 600.0
    drain_s: float = 120.0
    max_concurrency: int | None = None
    concurrency: int | None = None
    warmups: int = 0
    policy: Policy = "round-robin"


@dataclass(frozen=True, kw_only=True)
class Swarm:
    """Locust's web page, workers on other machines, and where those of this machine run.

    Attributes:
        web_host, web_port: where the page listens; no page where ``web_port`` is None.
        autostart: the run starts by itself and the page goes when it ends; else both wait for the user.
        master_host, master_port: where workers on other machines find the master; None for workers of this machine
            only.
        remote_workers: workers on other machines to wait for.
        token: what they must know to be given work; made up for the run, and told, where empty.
        cpus: processors that the processes of this machine are kept to; any where empty.
    """

    web_host: str = "127.0.0.1"
    web_port: int | None = None
    autostart: bool = False
    master_host: str | None = None
    master_port: int = 5557
    remote_workers: int = 0
    token: str = ""
    cpus: tuple[int, ...] = ()

    @property
    def page_stays(self) -> bool:
        """The page waits for the user when the run has ended."""
        return self.web_port is not None and not self.autostart


@dataclass(frozen=True, kw_only=True)
class ReplayPlan:
    """Everything that decides a run, but for the server itself.

    Attributes:
        planned: the schedule, by offset.
        address: the server.
        servers: the names of the manifest's servers by position, where there are several.
        others: equal servers beside the one at ``address``.
        headers: sent with every request; never written to disk.
        sending: how they are sent.
        slo: limits in seconds by name, for the live figures.
        swarm: Locust's web page, and workers on other machines.

    Raises:
        UsageError: numbers that do not fit each other, or a header that cannot be sent.
    """

    planned: Sequence[PlannedRequest]
    address: Address
    headers: Mapping[str, str] = field(default_factory=dict)
    sending: Sending = field(default_factory=Sending)
    slo: Mapping[str, float] = field(default_factory=dict)
    swarm: Swarm = field(default_factory=Swarm)
    servers: Sequence[str] = ()
    others: Sequence[Address] = ()

    def __post_init__(self) -> None:
        for address in (self.address, *self.others):
            RequestHeads(address, self.headers)
        sending, remote = self.sending, self.swarm.remote_workers
        if sending.workers < 0 or remote < 0 or self.all_workers < 1:
            raise UsageError("at least one worker is needed", where="--workers")
        for name, value in (("--max-concurrency", sending.max_concurrency), ("--concurrency", sending.concurrency)):
            if value is not None and value < 1:
                raise UsageError("must be at least 1", where=name)
            if value is not None and value < self.all_workers:
                raise UsageError(f"{value} cannot be shared by {self.all_workers} workers", where=name)
        if sending.max_concurrency is not None and sending.concurrency is not None:
            raise UsageError(
                "give one of them: closed loop has no other limit", where="--concurrency, --max-concurrency"
            )

    @property
    def all_workers(self) -> int:
        """Workers here and elsewhere."""
        return self.sending.workers + self.swarm.remote_workers


class PlanSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a :class:`ReplayPlan` that the Locust processes read from ``plan/settings.json``."""

    address: Address
    shards: int
    run_path: str
    sending: Sending
    slo: dict[str, float]
    span_s: float
    remote_workers: int = 0
    servers: list[str] = []
    others: list[Address] = []

    def part_of(self, limit: int | None, shard: int) -> int | None:
        """One worker's part of a limit on concurrency."""
        return None if limit is None else limit // self.shards + (shard < limit % self.shards)


def spool(plan: ReplayPlan, run_path: Path) -> Path:
    """Write settings and shares below the run folder and return the folder they are in.

    Raises:
        MachineError: there is no room for them.
    """
    try:
        return _spool(plan, run_path)
    except OSError as error:
        raise MachineError(
            f"the schedule cannot be written down: {error.strerror}",
            where=str(run_path),
            hint="free some room, or choose another --out",
        ) from error


def _spool(plan: ReplayPlan, run_path: Path) -> Path:
    folder = run_path / "plan"
    make_folder(folder)
    settings = PlanSettings(
        address=plan.address,
        shards=plan.all_workers,
        run_path=str(run_path.resolve()),
        sending=plan.sending,
        slo=request_limits(plan.slo),
        span_s=max((request.offset_s for request in plan.planned), default=0.0),
        remote_workers=plan.swarm.remote_workers,
        servers=list(plan.servers),
        others=list(plan.others),
    )
    places = places_of(plan)
    write_bytes(folder / "settings.json", msgspec.json.encode(settings))
    shares = shard_of(plan.planned, plan.all_workers)
    encoder = msgspec.msgpack.Encoder()
    for shard in range(plan.all_workers):
        with open_file(shard_path(folder, shard), "wb") as file:
            for request in plan.planned:
                if shares[request.index] == shard:
                    placed = msgspec.structs.replace(request, server=places.get(request.index))
                    encoded = encoder.encode(placed if places else request)
                    file.write(_LENGTH.pack(len(encoded)) + encoded)
    return folder


def places_of(plan: ReplayPlan) -> dict[int, int]:
    """Which server each request goes to, where that can be told beforehand: the same for any number of workers."""
    if not plan.others or plan.sending.policy == "least-loaded":
        return {}
    balancer = Balancer(plan.sending.policy, 1 + len(plan.others))
    roots: dict[int, int] = {}
    places = {}
    for request in plan.planned:
        root = roots[request.index] = request.index if request.previous is None else roots[request.previous]
        session = request.session if request.session is not None else root
        places[request.index] = balancer.choose(session, list)
    return places


def without_bodies(plan: ReplayPlan) -> ReplayPlan:
    """The same plan with nothing of its requests but what is needed to account for them."""
    return replace(plan, planned=[msgspec.structs.replace(request, body=b"") for request in plan.planned])


def shard_of(planned: Sequence[PlannedRequest], workers: int) -> dict[int, int]:
    """Which worker sends which request: by index, a conversation staying with one worker.

    The same requests get the same answer in every process; the union of all workers' shares is the whole schedule.
    """
    roots: dict[int, int] = {}
    for request in planned:
        roots[request.index] = request.index if request.previous is None else roots[request.previous]
    return {index: root % workers for index, root in roots.items()}


def plan_folder(settings: PlanSettings) -> Path:
    """Where the plan is spooled, on the machine that made it."""
    return Path(settings.run_path) / "plan"


def shard_path(folder: Path, shard: int) -> Path:
    """Where a worker's share lies."""
    return folder / f"shard-{shard}.msgpack"


def read_settings(folder: Path) -> PlanSettings:
    """The settings of a spooled plan."""
    return msgspec.json.decode((folder / "settings.json").read_bytes(), type=PlanSettings)


def decode_share(data: bytes) -> Iterator[PlannedRequest]:
    """The requests in the bytes of a share."""
    decoder = msgspec.msgpack.Decoder(PlannedRequest)
    position = 0
    while position < len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        yield decoder.decode(data[position : position + length])
        position += length


def remove(folder: Path) -> None:
    """Delete a spooled plan: the run's records say all that is to be kept."""
    shutil.rmtree(folder, ignore_errors=True)
