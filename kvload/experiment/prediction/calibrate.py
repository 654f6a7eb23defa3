"""A designed load on a running server, from which its step times can be fitted: about a minute.

A few lone requests show the server's pace, which decides the points of batch and length that the time allows. Every
point is visited once before it counts, since a server compiles kernels and captures graphs for shapes that come up
first: those visits are run folders of their own, and are not fitted from. Then all points are gone through again, pass
after pass, as often as the time allows; each pass is one ordinary run folder, and what passes differ by is what another
run may differ by. Where the passes show too few steps by themselves, the first visits count, too.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from kvload import __version__
from kvload.address import Address
from kvload.analysis.prediction.fit import FEWEST_STEPS
from kvload.analysis.records.loading import load
from kvload.errors import UsageError
from kvload.experiment.prediction import design
from kvload.experiment.prediction.design import Pace, Point, Room
from kvload.experiment.prediction.fitting import measured_steps
from kvload.experiment.prediction.shape import Overrides, method_of, shape_of
from kvload.records import RunManifest, ServerInfo, TraceInfo
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.workloads.schedule.build import Schedule

SECONDS = 60.0
"""What all of it may take, about."""

MOST_PASSES = 5

LEAST_POINTS = 3
"""Points, a lone one and two of several sequences, that are visited however slow the server is."""

ENOUGH_STRETCHES = FEWEST_STEPS + FEWEST_STEPS // 2
"""Stretches of steps in the passes, from which on the first visits are left out."""

MOST_VISITING = 0.4
"""Share of the time after which no further point is visited: those that were visited are to be measured."""

LEAST_PASS = 0.15
"""Share of the time that a first pass has at least, however long the visits before it took."""

DRAIN_S = 20.0
"""How long answers in flight may come in when the time is over."""


@dataclass(frozen=True)
class Target:
    """A server that runs.

    Attributes:
        server: a launched one's name; the only one where this and ``address`` are None.
        address: any OpenAI-compatible server instead.
        model: the name to ask for; its first where None.
        max_model_len, pool_tokens, method: as the server says where None.
    """

    server: str | None = None
    address: Address | None = None
    model: str | None = None
    max_model_len: int | None = None
    pool_tokens: int | None = None
    method: str | None = None


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        runs: run folders to fit from: the passes, or the first visits, too, where no pass came to its end.
        left_out: what the time did not allow, a sentence each.
    """

    runs: list[Path]
    left_out: list[str] = field(default_factory=list)


def run_calibration(
    target: Target, out: Path, *, seconds: float = SECONDS, seed: int = 0, say: Callable[[str], None] = print
) -> Calibration:
    """Put the designed load on a server.

    Args:
        out: folder for the run folders, ``visit-1`` and so on, ``pass-1`` and so on, and for their ``traces``.
        seconds: about how long it may take; answers in flight then still come in.
        seed: decides prompts.
        say: told what happens.

    Raises:
        UsageError: the server does not say its method, or no request was answered.
        ServerError: the server does not answer.
    """
    return _Calibrating(target, out, seconds, seed, say).run()


class _Calibrating:
    def __init__(self, target: Target, out: Path, seconds: float, seed: int, say: Callable[[str], None]) -> None:
        self.out, self.say = out, say
        self.server = _Server(target, seed)
        self.began_s = time.monotonic()
        self.ends_s = self.began_s + seconds
        self.visits_end_s = self.began_s + MOST_VISITING * seconds
        self.visits: list[RunDir] = []
        self.interrupted = False

    def run(self) -> Calibration:
        room = self.server.room()
        first = design.pilot(room)
        self.say(f"its pace: {len(first.prompts)} requests alone")
        pace = _pace_alone(self._send("visit-1", [first]))
        points, pace, left_out = self._visit(design.wanted(room), pace)
        passes = self._passes(points, pace)
        runs = passes
        if sum(self.server.stretches(run) for run in passes) < ENOUGH_STRETCHES:
            left_out.append("more passes: these are so few that first visits count, too")
            runs = [*self.visits, *passes]
        return Calibration([run.path for run in runs], left_out)

    def _visit(self, wanted: Sequence[tuple[Point, float]], pace: Pace) -> tuple[list[Point], Pace, list[str]]:
        """Visit the points that the time allows, for the first time.

        Returns:
            those points; the pace by then; what was left out.
        """
        points: list[Point] = []
        left_out: list[str] = []
        for point, share in wanted:
            left_s = self._left_s() - design.of_passes(pace, points)
            fits = design.fitting(point, pace, share * left_s)
            if len(points) >= LEAST_POINTS and time.monotonic() > self.visits_end_s:
                fits = None
            if fits is None and len(points) < LEAST_POINTS:
                # Without these there is nothing to fit from; should they take too long, the time's end cuts them short.
                *_, fits = design.smaller(point)
            if self.interrupted:
                fits = None
            if fits is None:
                left_out.append(f"{point} (about {pace.seconds(point):.0f} s each time)")
                continue
            if fits != point:
                left_out.append(f"{point}; instead: {fits}")
            if fits in points:
                continue
            self.say(f"first visit: {fits}")
            run = self._send(f"visit-{len(self.visits) + 1}", [fits])
            if run.manifest().partial and len(points) >= LEAST_POINTS:
                left_out.append(f"{fits}: cut short")
                break
            points.append(fits)
            pace = _seen(pace, fits, run)
        return points, pace, left_out

    def _passes(self, points: Sequence[Point], pace: Pace) -> list[RunDir]:
        """Go through the points as often as the time allows."""
        passes: list[RunDir] = []
        took_s = sum(pace.seconds(point) for point in points)
        while points and not self.interrupted and len(passes) < MOST_PASSES:
            now_s = time.monotonic()
            if not passes:
                self.ends_s = max(self.ends_s, now_s + LEAST_PASS * (self.ends_s - self.began_s))
            elif took_s > self._left_s():
                break
            self.say(f"pass {len(passes) + 1}: all {len(points)} again, about {took_s:.0f} s")
            passes.append(self._send(f"pass-{len(passes) + 1}", points))
            took_s = time.monotonic() - now_s
        return passes

    def _left_s(self) -> float:
        return self.ends_s - time.monotonic()

    def _send(self, name: str, points: Sequence[Point]) -> RunDir:
        run = self.server.send(self.out, name, points, self.ends_s)
        ended = run.manifest().ended
        self.interrupted = self.interrupted or ended == "interrupted"
        if name.startswith("visit"):
            self.visits.append(run)
        if not any(record.status == "ok" for record, _ in run.records()) and len(self.visits) == 1:
            raise UsageError("no request was answered", where=str(run.path), hint=f"kvload report {run.path}")
        return run


class _Server:
    """The server, and what is needed to send it designed requests."""

    def __init__(self, target: Target, seed: int) -> None:
        from kvload.servers.lifecycle import registry
        from kvload.servers.watch import discover
        from kvload.workloads.run.headers import request_headers

        self.seed = seed
        self.headers = request_headers({})
        if target.address is not None:
            self.address = target.address
            info = discover.server_info(self.address, self.headers, model=target.model)
            self.vocabulary = discover.vocab_size(self.address, self.headers)
        else:
            # Replicas are equal: one of them is what a step model is of.
            try:
                entry = registry.find_all(target.server)[0]
            except UsageError as error:
                raise UsageError(error.message, where="--calibrate", hint=error.hint) from error
            self.address, info, self.vocabulary = entry.address, entry.info, entry.vocab_size
        given = {
            "model": target.model,
            "max_model_len": target.max_model_len,
            "pool_tokens": target.pool_tokens,
            "method": target.method if info.method is None else None,
        }
        self.info: ServerInfo = msgspec.structs.replace(
            info, **{name: value for name, value in given.items() if value is not None}
        )
        self._asked = self.vocabulary is not None
        self._probed = False

    def room(self) -> Room:
        """What it can take, as far as it says.

        Raises:
            UsageError: it does not say its method, and none was given.
        """
        manifest = self._manifest(Path(), [])
        self.shape = shape_of(method_of(manifest, Path(self.address.url)), self.info, Overrides())
        context = self.info.max_model_len or 2 * design.LONG
        return Room(context, self.shape.pool_tokens, self.shape.max_sequences, self.shape.chunk_tokens)

    def stretches(self, run: RunDir) -> int:
        """Stretches of steps that a run shows."""
        return len(measured_steps(load(run), self.shape))

    def send(self, out: Path, name: str, points: Sequence[Point], ends_s: float) -> RunDir:
        """Send the requests of points, in closed loops one after the other; the run folder is ``out/name``."""
        from kvload.workloads.run.loops import Loop, run_loops
        from kvload.workloads.run.plan import ReplayPlan, Sending
        from kvload.workloads.run.probe import probe

        requests = [request for point in points for request in point.requests()]
        (out / "traces").mkdir(parents=True, exist_ok=True)
        trace = out / "traces" / f"{name}.jsonl"
        rows = [
            {"id": str(place), "arrival": 0.0, "input_length": prompt, "output_length": answer}
            for place, (prompt, answer) in enumerate(requests)
        ]
        trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        schedule = self._schedule(trace)
        if not self._probed:
            probe(schedule.planned, self.address, headers=self.headers)
            self._probed = True
        most = max(point.at_once for point in points)
        plan = ReplayPlan(
            planned=schedule.planned,
            address=self.address,
            headers=self.headers,
            sending=Sending(concurrency=most, drain_s=DRAIN_S),
        )
        manifest = self._manifest(trace, points)
        run = RunDir.create(out / name, msgspec.structs.replace(manifest, trace=schedule.trace))
        loops = [Loop(len(point.requests()), point.at_once) for point in points]
        run_loops(plan, run, loops, ends_s=ends_s, cut_s=ends_s + DRAIN_S)
        return run

    def _schedule(self, trace: Path) -> "Schedule":
        """The requests of a trace, each run's with prompts of its own: nothing of them is in a prefix cache."""
        from kvload.workloads.run.vocabulary import asks_by_token_ids, vocabulary_by_asking
        from kvload.workloads.schedule.build import load_schedule
        from kvload.workloads.schedule.options import ScheduleOptions

        self.seed += 1

        def planned() -> "Schedule":
            return load_schedule(
                trace,
                ScheduleOptions(mode="forced", seed=self.seed),
                model=self.info.model or "",
                vocabulary=self.vocabulary,
                max_model_len=self.info.max_model_len,
            )

        schedule = planned()
        if not self._asked and asks_by_token_ids(schedule.planned):
            self._asked = True
            self.vocabulary = vocabulary_by_asking(schedule.planned, self.address, headers=self.headers)
            schedule = planned()
        return schedule

    def _manifest(self, trace: Path, points: Sequence[Point]) -> RunManifest:
        most = max((point.at_once for point in points), default=1)
        count = sum(len(point.requests()) for point in points)
        return RunManifest(
            run_id=f"{time.time_ns():x}",
            kvload_version=__version__,
            servers=[self.info],
            trace=TraceInfo(path=trace.name, sha256="", format="kvload", rows=count, used=count),
            mode="forced",
            seed=self.seed,
            arrivals={"kind": "trace", "concurrency": most},
            planned=count,
            max_concurrency=most,
            arm="calibration",
            notes=[str(point) for point in points],
        )


def _pace_alone(run: RunDir) -> Pace:
    """The pace that lone requests show: the best of each length, since the first of it may wait for a compiler.

    Raises:
        UsageError: the server streams no answers.
    """
    gap_s = _gap_s(run)
    prompt_s = _prompt_token_s(run)
    if gap_s is None or prompt_s is None:
        raise UsageError("the server streamed no answers", where=str(run.path), hint=f"kvload report {run.path}")
    return Pace(prompt_s, ((1, gap_s),))


def _seen(pace: Pace, point: Point, run: RunDir) -> Pace:
    """The pace with what a visit has shown."""
    gap_s = _gap_s(run)
    if gap_s is not None:
        pace = pace.seen(point.at_once, gap_s)
    prompt_s = _prompt_token_s(run) if point.at_once == 1 else None
    return pace if prompt_s is None else replace(pace, prompt_token_s=min(pace.prompt_token_s, prompt_s))


def _gap_s(run: RunDir) -> float | None:
    """Median time between two tokens of a request; compiling and prompts of others are rare among them."""
    gaps = [np.diff(chunks["us"].astype(np.float64)) for record, chunks in run.records() if record.status == "ok"]
    every = np.concatenate(gaps) if gaps else np.zeros(0)
    return max(1e-4, float(np.median(every)) * 1e-6) if len(every) else None


def _prompt_token_s(run: RunDir) -> float | None:
    """Seconds of a prompt token, of the lone prompt for which it was least."""
    each = [
        (record.t_first_s - record.t_send_s) / (record.prompt_tokens or record.input_tokens or 1)
        for record, _ in run.records()
        if record.status == "ok" and record.t_first_s is not None and record.t_send_s is not None
    ]
    return max(1e-7, min(each)) if each else None


def target_of(text: str, target: Target) -> Target:
    """A target from a launched server's name or an address.

    Raises:
        UsageError: it is an address that does not parse.
    """
    if "://" in text:
        return replace(target, address=Address.parse(text, where="--calibrate"))
    return replace(target, server=text)
