"""One replay, from options to a complete run folder: what ``kvload replay`` does, and ``compare`` for each arm."""

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvload import __version__
from kvload.errors import KvloadError, RunDirError, UsageError
from kvload.experiment.options import ReplayOptions
from kvload.experiment.replay_servers import ReplayServers
from kvload.records import GpuUse, RunManifest, ServerInfo, ServerSample
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.servers.host.energy import EnergyMeter
    from kvload.workloads.run.live import Progress
    from kvload.workloads.run.plan import Swarm
    from kvload.workloads.schedule.build import Schedule
    from kvload.workloads.schedule.request import PlannedRequest

SCRAPE_EVERY_S = 0.5

CALIBRATED_FROM_S = 30.0
"""A run this long is worth the ten seconds of a calibration."""


@dataclass(frozen=True)
class Listener:
    """Who is told what happens: progress many times, sentences now and then, once that the run folder is complete.

    With a web page that is before the page is closed. ``interrupts`` says how often the user has asked for the end,
    where a run is not in the main thread and gets no signals.
    """

    on_progress: "Callable[[Progress], None]" = lambda _progress: None
    on_notice: Callable[[str], None] = lambda _text: None
    on_complete: Callable[[RunDir], None] = lambda _run: None
    interrupts: Callable[[], int] = lambda: 0


def replay_once(options: ReplayOptions, listener: Listener | None = None) -> RunDir:
    """Replay a trace against a server and return the complete run folder.

    How it ended stands in the manifest (``partial``, ``ended``); an interrupted run is returned, not raised.

    Raises:
        UsageError, TraceError: options or trace cannot be used.
        ServerError: no such server, or it does not answer, before anything was sent.
    """
    return _OneReplay(options, listener or Listener()).run()


def default_out(trace: Path) -> Path:
    """``runs/<time>-<trace>``, a folder that does not exist yet."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", trace.stem) or "run"
    base = Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{name}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def check_token_ids(server: ServerInfo, planned: "Sequence[PlannedRequest]") -> None:
    """Refuse to ask a server for token ids where it is known to refuse every request that does.

    Raises:
        UsageError: the engine gives no token ids of a streamed chat.
    """
    from kvload.servers.engines.base import known

    engine = known(server.engine)
    if engine is None or engine.streams_chat_token_ids:
        return
    if any(request.path.endswith("/chat/completions") for request in planned):
        raise UsageError(
            f"{engine.name} gives no token ids of a streamed chat",
            where="--token-ids",
            hint="leave it out; prompts of token ids or plain text go another way and have them",
        )


def check_scorers(planned: "Sequence[PlannedRequest]") -> None:
    """Refuse a trace whose answers could not be scored, before they are asked for.

    Raises:
        UsageError: a request names a scorer that there is not, or expects what its scorer cannot score against.
    """
    if not any(request.expected is not None and request.scorer is not None for request in planned):
        return
    from kvload.analysis.quality.scorers import score

    for request in planned:
        if request.expected is not None and request.scorer is not None:
            try:
                score(request.scorer, "", request.expected)
            except UsageError as error:
                raise UsageError(error.message, where=f"request '{request.request_id}'", hint=error.hint) from error


class _OneReplay:
    def __init__(self, options: ReplayOptions, listener: Listener) -> None:
        self.options = options
        self.listener = listener
        from kvload.workloads.run.headers import request_headers

        self.headers = request_headers(options.headers)
        self.servers = ReplayServers(options, self.headers, listener.on_notice)
        self._scraping = ExitStack()
        self._energy: EnergyMeter | None = None
        self._gpus: list[GpuUse] = []
        self._evictions: dict[str, Any] = {}

    def run(self) -> RunDir:
        from kvload.workloads.run.plan import ReplayPlan
        from kvload.workloads.run.replay import Hooks, Replay

        options = self.options
        server = self.servers.find()
        schedule = self._schedule(server)
        if options.run.schedule.return_token_ids:
            check_token_ids(server, schedule.planned)
        check_scorers(schedule.planned)
        for note in (schedule.mode_reason, *schedule.notes):
            self.listener.on_notice(note)
        plan = ReplayPlan(
            planned=schedule.planned,
            address=self.servers.address,
            headers=self.headers,
            sending=options.run.sending,
            slo=options.run.slo,
            swarm=options.swarm,
            servers=[one.name or "" for one in (server, *self.servers.behind)] if self.servers.behind else (),
            others=self.servers.addresses[1:],
        )
        plan = replace(plan, swarm=self._with_token(plan.swarm))
        for oddity in self._probe(schedule):
            self.listener.on_notice(oddity)
        run = RunDir.create(options.out or default_out(options.trace), self._manifest(server, schedule))
        calibration = self._calibrate(schedule)
        notes = [
            *options.notes,
            *self.servers.notes(),
            *self._warm_up(schedule),
        ]
        server = self.servers.reset_cache(server)
        run.update_manifest(servers=[server, *self.servers.behind], notes=notes, calibration=calibration)
        log_starts = self.servers.log_sizes()
        self._evictions = self.servers.eviction_counts()

        scraping = threading.Lock()

        def scrape(sample: ServerSample, place: int) -> None:
            # without room on the disk the run itself says so
            with scraping, contextlib.suppress(OSError):
                run.append_scrape(msgspec.structs.replace(sample, server=place) if place else sample)
            if not place:
                replay.show_sample(sample)

        def start(zero_monotonic: float) -> None:
            from kvload.servers.watch.scrape import Scraper

            for place, address in enumerate(self.servers.addresses):
                sink = partial(scrape, place=place)
                scraper = Scraper(address, server.engine, SCRAPE_EVERY_S, zero_monotonic, sink, headers=self.headers)
                self._scraping.enter_context(scraper)
            self._meter()

        hooks = Hooks(
            on_progress=self.listener.on_progress,
            on_start=start,
            on_notice=self.listener.on_notice,
            on_end=self._end,
            on_complete=lambda: self._complete(run, log_starts),
            is_server_dead=self.servers.is_dead,
            interrupts=self.listener.interrupts,
        )
        replay = Replay(plan, run, hooks)
        # it keeps of the schedule what it needs; the prompts need not stay in memory while it runs
        del plan, schedule
        try:
            replay.run()
        finally:
            self._scraping.close()
        return run

    def _with_token(self, swarm: "Swarm") -> "Swarm":
        """With workers elsewhere, where the user has given no token: a new one, which they are told."""
        if not swarm.remote_workers or swarm.token:
            return swarm
        token = secrets.token_hex(8)
        host = "MASTER" if swarm.master_host in {None, "127.0.0.1", "0.0.0.0", "::"} else swarm.master_host  # noqa: S104
        self.listener.on_notice(
            f"workers elsewhere: kvload replay --worker --master-host {host} --master-port {swarm.master_port}"
            f" --token {token}"
        )
        return replace(swarm, token=token)

    def _meter(self) -> None:
        """Read the GPUs' energy counters, where the server runs on this machine."""
        from kvload.servers.host.energy import EnergyMeter, load_nvml

        if self.servers.are_here:
            gpus = [gpu for one in self.servers.launched for gpu in one.entry.info.gpus]
            self._energy = EnergyMeter(load_nvml(), gpus=gpus)
            self._energy.start()

    def _end(self) -> None:
        self._scraping.close()
        if self._energy is not None:
            self._gpus, self._energy = self._energy.stop(), None

    def _complete(self, run: RunDir, log_starts: Sequence[int]) -> None:
        if self._gpus:
            run.update_manifest(gpus=self._gpus)
        self._keep_evictions(run)
        self._check_counts(run)
        self.servers.keep_logs(run, log_starts)
        if self.servers.behind:
            # records that cannot be read are the report's to complain of
            with contextlib.suppress(RunDirError):
                self._say_who_answered(run)
        self.listener.on_complete(run)

    def _check_counts(self, run: RunDir) -> None:
        """Hold the count of some answers against the server's tokenizer; the report says where they differ."""
        from kvload.workloads.run.token_counts import check_counts

        if run.manifest().partial:  # nobody waits for more after an interrupt, and a dead server tells nothing
            return
        with contextlib.suppress(RunDirError):
            if (found := check_counts(run, self.servers.text_counter())) is not None:
                run.update_manifest(token_check=found)

    def _say_who_answered(self, run: RunDir) -> None:
        """Note how many requests each server behind a router answered."""
        from kvload.analysis.records.loading import load

        servers = [one.name or "the router itself" for one in run.manifest().servers]
        table = load(run)
        counts = [int((table.server[table.ok] == place).sum()) for place in range(len(servers))]
        text = ", ".join(f"{name} {count}" for name, count in zip(servers, counts, strict=True) if count)
        if text:
            run.update_manifest(notes=[*run.manifest().notes, f"answered by: {text}"])
            self.listener.on_notice(f"answered by: {text}")

    def _schedule(self, server: ServerInfo) -> "Schedule":
        from kvload.workloads.run.vocabulary import asks_by_token_ids, vocabulary_by_asking

        schedule = self._planned(server)
        options = self.options.run
        if (
            self.servers.vocabulary is None
            and options.schedule.token_range is None
            and asks_by_token_ids(schedule.planned)
        ):
            self.servers.vocabulary = vocabulary_by_asking(
                schedule.planned, self.servers.address, headers=self.headers, timeout_s=options.sending.timeout_s
            )
            if self.servers.vocabulary is not None:
                self.listener.on_notice(
                    f"prompts are made up of the {self.servers.vocabulary:,} token ids that the server takes"
                )
                schedule = self._planned(server)
        return schedule

    def _planned(self, server: ServerInfo) -> "Schedule":
        from kvload.workloads.schedule.build import load_schedule

        return load_schedule(
            self.options.trace,
            self.options.run.schedule,
            model=server.model or "",
            vocabulary=self.servers.vocabulary,
            max_model_len=server.max_model_len,
            served_models=None if self.options.model is not None else self.servers.served_models,
            count_tokens=self.servers.token_counter(server),
        )

    def _manifest(self, server: ServerInfo, schedule: "Schedule") -> RunManifest:
        options, run = self.options, self.options.run
        sending = run.sending
        return RunManifest(
            run_id=f"{time.time_ns():x}",
            kvload_version=__version__,
            servers=[server, *self.servers.behind],
            trace=schedule.trace,
            mode=schedule.mode,
            seed=run.schedule.seed,
            arrivals=schedule.arrivals | ({"concurrency": sending.concurrency} if sending.concurrency else {}),
            planned=len(schedule.planned),
            slo=dict(run.slo),
            warmups=sending.warmups,
            timeout_s=sending.timeout_s,
            max_concurrency=sending.max_concurrency or sending.concurrency,
            arm=options.arm or run.label,
            repeat=options.repeat,
            metadata=dict(run.metadata),
        )

    def _probe(self, schedule: "Schedule") -> list[str]:
        """One small request of the run's kind: what the server refuses is known before anything is measured."""
        from kvload.workloads.run.probe import probe

        timeout_s = self.options.run.sending.timeout_s
        found = [
            oddity
            for address in self.servers.addresses
            for oddity in probe(schedule.planned, address, headers=self.headers, timeout_s=timeout_s)
        ]
        return list(dict.fromkeys(found))

    def _warm_up(self, schedule: "Schedule") -> list[str]:
        if not self.options.run.sending.warmups:
            return []
        from kvload.workloads.run.warmup import warm_up

        self.listener.on_notice(f"warming up with {self.options.run.sending.warmups} requests")
        problems = [
            problem
            for address in self.servers.addresses
            for problem in warm_up(
                schedule.planned,
                address,
                self.options.run.sending.warmups,
                headers=self.headers,
                timeout_s=self.options.run.sending.timeout_s,
            )
        ]
        for problem in problems:
            self.listener.on_notice(problem)
        return problems

    def _calibrate(self, schedule: "Schedule") -> dict[str, Any] | None:
        """The client's own error at this run's load; None where it is not to be measured."""
        from kvload.workloads.calibration.cache import calibrate_once
        from kvload.workloads.calibration.calibrate import load_of

        wanted, sending = self.options.run.calibrate, self.options.run.sending
        if wanted is False or not schedule.planned:
            return None
        load = load_of(schedule.planned, sending.concurrency)
        if wanted is None:
            # workers elsewhere are on machines that this one knows nothing of
            elsewhere = self.options.swarm.master_host is not None or sending.workers < 1
            if elsewhere or len(schedule.planned) / load.rate < CALIBRATED_FROM_S:
                return None
        try:
            return calibrate_once(
                load,
                workers=max(sending.workers, 1),
                on_measure=lambda: self.listener.on_notice("calibrating the client against the mock server"),
            )
        except KvloadError as error:
            if wanted:
                raise
            self.listener.on_notice(f"the client was not calibrated: {error.message}")
            return None

    def _keep_evictions(self, run: RunDir) -> None:
        """What a method of eviction did during the run, by the server's own count; that it did nothing is said."""
        from kvload.servers.verification.eviction import during

        found = during(self._evictions, self.servers.eviction_counts())
        if found is None:
            return
        manifest = run.update_manifest(eviction=found)
        if not found.get("freed_blocks"):
            note = f"{manifest.server.method} evicted nothing during the run: no request exceeded what it keeps"
            run.update_manifest(notes=[*manifest.notes, note])
            self.listener.on_notice(note)
