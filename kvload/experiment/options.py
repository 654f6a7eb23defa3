"""What a user decides about a run: shared by one replay, every arm of a comparison, and every attempt of a search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kvload.address import Address
from kvload.workloads.run.plan import Sending, Swarm
from kvload.workloads.schedule.options import ScheduleOptions

if TYPE_CHECKING:
    from kvload.servers.lifecycle.places import Server


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A run, but for its server and its folder.

    Attributes:
        schedule: how the trace is read and what is made of it.
        sending: how requests are sent.
        slo: limits in seconds by name.
        max_model_len: the server's limit on prompt and answer, in tokens; as it says itself where None.
        reset_cache: empty a launched server's prefix cache before the run.
        calibrate: measure the client's own error first; where None, before long runs.
        insecure: accept any certificate of a server given by its address.
        metadata: kept in each run's manifest, for the user's own lists.
        label: what reports call a run that is no arm of a comparison.
    """

    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    sending: Sending = field(default_factory=Sending)
    slo: Mapping[str, float] = field(default_factory=dict)
    max_model_len: int | None = None
    reset_cache: bool = True
    calibrate: bool | None = None
    insecure: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """One replay.

    Attributes:
        trace: the trace's file.
        run: what is shared with other runs of the same experiment.
        server: name of a launched server, or of its replicas; the only one where this and ``address`` are None.
        running: a server that was started for this run, instead.
        address: any OpenAI-compatible server instead.
        model: the name to ask for; where None a row's own if it is served, else the server's first.
        headers: sent with every request; they may hold keys and are written nowhere.
        swarm: Locust's web page, and workers on other machines.
        out: the run folder; ``runs/TIME-TRACE`` where None.
        arm, repeat: this run's place in a comparison.
        notes: kept in the run's manifest.
    """

    trace: Path
    run: RunOptions = field(default_factory=RunOptions)
    server: str | None = None
    running: "Server | None" = None
    address: Address | None = None
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    swarm: Swarm = field(default_factory=Swarm)
    out: Path | None = None
    arm: str | None = None
    repeat: int | None = None
    notes: tuple[str, ...] = ()
