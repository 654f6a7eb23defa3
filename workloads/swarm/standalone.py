"""A run under ``locust -f`` itself, without ``kvload replay`` around it.

It makes the same plan, run folder and records; the report is rendered afterwards with ``kvload report``.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvload import __version__
from kvload.address import Address
from kvload.errors import KvloadError, ServerError, UsageError
from kvload.http import request
from kvload.records import RunManifest, ServerInfo
from kvload.rundir import RunDir
from kvload.units import parse_duration, parse_limits, request_limits
from kvload.workloads.run.completion import Outcome, complete
from kvload.workloads.run.live import LiveBoard
from kvload.workloads.run.plan import ReplayPlan, Sending, remove, spool
from kvload.workloads.schedule.arrivals import ArrivalSpec
from kvload.workloads.schedule.build import load_schedule
from kvload.workloads.schedule.options import ScheduleOptions
from kvload.workloads.traces.samples import trace_path

OPTIONS: Mapping[str, tuple[str, str]] = {
    "trace": ("", "kvload: replay this trace (with --host), a file or sample:demo"),
    "run-dir": ("", "kvload: the run folder; runs/TIME if left out"),
    "model": ("", "kvload: model name to ask for; the server's first if left out"),
    "mode": ("auto", "kvload: free, forced, or auto: forced if the trace has no texts"),
    "speed": ("1", "kvload: replay so many times as fast as recorded"),
    "limit": ("", "kvload: at most so many requests"),
    "slo": ("", "kvload: limits to meet, ttft=500ms,tpot=50ms"),
    "request-timeout": ("10min", "kvload: a request's limit"),
    "drain": ("2min", "kvload: wait so long for the last answers"),
    "seed": ("0", "kvload: decides everything that is drawn"),
}
"""Options of ``locust -f`` (and of ``locust.conf``) with defaults and help."""


class StandaloneRun:
    """Plan and run folder of a run that Locust's own command line started.

    Args:
        options: Locust's parsed options.
        headers: sent with every request.
        workers: processes that send.

    Raises:
        UsageError, TraceError, ServerError: it cannot be run like this.
    """

    def __init__(self, options: Any, headers: Mapping[str, str], workers: int) -> None:
        if not options.host:
            raise UsageError("no server is named", where="--host")
        address = Address.parse(options.host, where="--host")
        model = options.model or _first_model(address, headers)
        mode = options.mode
        if mode not in {"auto", "free", "forced"}:
            raise UsageError(f"'{mode}' is none of auto, free and forced", where="--mode")
        seed = int(options.seed)
        slo = parse_limits(options.slo, where="--slo")
        schedule = load_schedule(
            trace_path(options.trace),
            ScheduleOptions(
                mode=mode,
                arrivals=ArrivalSpec(speed=float(options.speed), seed=seed),
                limit=int(options.limit) if options.limit else None,
                seed=seed,
            ),
            model=model,
        )
        manifest = RunManifest(
            run_id=f"{time.time_ns():x}",
            kvload_version=__version__,
            servers=[ServerInfo(url=address.url, model=model)],
            trace=schedule.trace,
            mode=schedule.mode,
            seed=seed,
            arrivals=schedule.arrivals,
            planned=len(schedule.planned),
            slo=slo,
            timeout_s=parse_duration(options.request_timeout, where="--request-timeout"),
        )
        path = Path(options.run_dir) if options.run_dir else Path("runs") / time.strftime("%Y%m%d-%H%M%S-locust")
        self.run = RunDir.create(path, manifest)
        self.plan = ReplayPlan(
            planned=schedule.planned,
            address=address,
            headers=headers,
            sending=Sending(
                workers=workers,
                timeout_s=manifest.timeout_s,
                drain_s=parse_duration(options.drain, where="--drain"),
            ),
            slo=slo,
        )
        self.outcome = Outcome(LiveBoard(request_limits(slo)))
        self.folder = spool(self.plan, path)

    def tell(self, event: dict[str, Any]) -> None:
        """Take in what the coordinator tells; there is no parent to pass it on to."""
        self.outcome.take(json.loads(json.dumps(event)))

    def finish(self) -> str:
        """Complete the run folder; returns a sentence for the user."""
        manifest = complete(self.run, self.plan, self.outcome)
        remove(self.folder)
        return f"{manifest.sent} requests sent, {manifest.ended}: kvload report {self.run.path}"


def _first_model(address: Address, headers: Mapping[str, str]) -> str:
    try:
        return str(request(address, "/v1/models", headers=headers).json()["data"][0]["id"])
    except (KvloadError, KeyError, IndexError, TypeError) as error:
        where = address.at("/v1/models")
        raise ServerError(f"no model to ask for: {error}", where=where, hint="give --model") from error
